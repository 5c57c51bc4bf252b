package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/server"
	"tidelock.dev/internal/servertest"
	"tidelock.dev/internal/store/storetest"
)

// TestRaces has many callers change the same things at once, and the project
// deleted under them. Somebody wins, the others are told why they did not, and
// nothing breaks.
func TestRaces(t *testing.T) {
	for _, engine := range []struct {
		name   string
		option func(testing.TB) servertest.Option
	}{
		{"sqlite", func(testing.TB) servertest.Option { return func(*server.Config) {} }},
		{"postgres", func(t testing.TB) servertest.Option { return servertest.PostgreSQL(storetest.Postgres(t)) }},
	} {
		t.Run(engine.name, func(t *testing.T) {
			s := servertest.Start(t, engine.option(t), func(c *server.Config) { c.RateLimitUser = 0 })
			site := s.Project("team/site", tidelock.Private)
			head := site.Push("main", "app.yaml", "kind: ConfigMap")
			crew := s.Group("crew")
			project := fmt.Sprintf("projects/%d", site.ID)
			share := fmt.Sprintf(`POST %s/share {"group_id":%d,"group_access":30}`, project, crew)
			deploy := fmt.Sprintf(`POST %s/deployments {"environment":"prod","sha":%q,"ref":"main","tag":false,"status":"success"}`, project, head)
			status := fmt.Sprintf(`POST %s/statuses/%s {"name":"build","state":`, project, head)
			variable := fmt.Sprintf(`%s/variables {"key":"K","value":"v"}`, project)
			hook := fmt.Sprintf(`POST %s/hooks {"url":"http://receiver.invalid/x","pipeline_events":true}`, project)
			token := fmt.Sprintf(`POST %s/access_tokens {"name":"ci","scopes":["api"],"access_level":30}`, project)

			for _, race := range [][]string{
				{"POST " + variable, fmt.Sprintf(`PUT %s/variables/K {"value":"w"}`, project), fmt.Sprintf("DELETE %s/variables/K", project)},
				{share, fmt.Sprintf("DELETE %s/share/%d", project, crew)},
				{status + `"pending"}`, status + `"running"}`, status + `"success"}`},
				{fmt.Sprintf(`POST %s/environments {"name":"prod"}`, project), deploy, fmt.Sprintf("POST %s/environments/1/stop {}", project)},
				{hook, fmt.Sprintf("DELETE %s/hooks/1", project), fmt.Sprintf("DELETE %s/hooks/2", project)},
				{"DELETE " + project, hook, deploy, share, token, status + `"failed"}`, "POST " + variable},
			} {
				won := 0
				var mu sync.Mutex
				var wg sync.WaitGroup
				for i := range 10 * len(race) {
					wg.Go(func() {
						method, rest, _ := strings.Cut(race[i%len(race)], " ")
						path, body, _ := strings.Cut(rest, " ")
						got := s.Do(method, "/api/v4/"+path, s.Token, strings.NewReader(body), "Content-Type", "application/json")
						mu.Lock()
						defer mu.Unlock()
						if got.Status < 300 {
							won++
						}
						if got.Status >= http.StatusInternalServerError {
							t.Errorf("%s %s: %d %s", method, path, got.Status, got.Body)
						}
					})
				}
				wg.Wait()
				if won == 0 {
					t.Errorf("nobody won: %q", race)
				}
			}
		})
	}
}
