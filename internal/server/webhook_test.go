package server_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/server"
	"tidelock.dev/internal/servertest"
)

// TestWebhooksSurviveACrash pushes while the receiver is down, kills the
// server, and finds everything delivered by the next one.
func TestWebhooksSurviveACrash(t *testing.T) {
	var mu sync.Mutex
	up, taken := false, map[string]bool{}
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if !up {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		taken[r.Header.Get("X-Gitlab-Event")] = true
	}))
	defer receiver.Close()
	s := servertest.Start(t, func(c *server.Config) { c.WebhookAllow = []string{"127.0.0.0/8"} })
	site := s.Project("team/site", tidelock.Private)
	hooks := fmt.Sprintf("projects/%d/hooks", site.ID)
	s.Call(s.Token, "POST", hooks, map[string]any{
		"url": receiver.URL, "tag_push_events": true, "pipeline_events": true, "deployment_events": true,
	}, nil)

	head := site.Push("main", "app.yaml", "kind: ConfigMap")
	site.MustGit("tag", "v1")
	site.MustGit("push", "--quiet", "origin", "v1")
	s.Call(s.Token, "POST", fmt.Sprintf("projects/%d/statuses/%s", site.ID, head), map[string]any{"state": "success"}, nil)
	s.Call(s.Token, "POST", fmt.Sprintf("projects/%d/deployments", site.ID), map[string]any{
		"environment": "production", "sha": head, "ref": "main", "tag": false, "status": "success",
	}, nil)
	s.Kill()
	mu.Lock()
	up = true
	mu.Unlock()
	s.Start()
	s.Eventually("every kind of event to be delivered", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return taken["Push Hook"] && taken["Tag Push Hook"] && taken["Pipeline Hook"] && taken["Deployment Hook"]
	})
}

// TestH10Webhooks: as it comes, the server calls neither this machine nor
// itself.
func TestH10Webhooks(t *testing.T) {
	s := servertest.Start(t)
	site := s.Project("team/site", tidelock.Private)
	hooks := fmt.Sprintf("/api/v4/projects/%d/hooks", site.ID)
	for _, url := range []string{s.URL, s.HTTPURL, "http://127.0.0.1:1/", "http://169.254.169.254/latest", "http://[::ffff:7f00:1]/"} {
		got := s.Do("POST", hooks, s.Token, strings.NewReader(fmt.Sprintf(`{"url":%q}`, url)), "Content-Type", "application/json")
		if got.Status != http.StatusUnprocessableEntity {
			t.Errorf("a hook to %s: %d %s, want 422", url, got.Status, got.Body)
		}
	}
}

// TestH10OwnSSH: a hook does not lead to the port of git over SSH either, by
// none of the addresses that it listens on.
func TestH10OwnSSH(t *testing.T) {
	s := servertest.Start(t, func(c *server.Config) { c.SSHListen = "0.0.0.0:0" })
	site := s.Project("team/site", tidelock.Private)
	ssh, err := url.Parse(s.SSHURL)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip := a.(*net.IPNet).IP
		if !ip.IsGlobalUnicast() {
			continue
		}
		hook := fmt.Sprintf(`{"url":"http://%s/"}`, net.JoinHostPort(ip.String(), ssh.Port()))
		got := s.Do("POST", fmt.Sprintf("/api/v4/projects/%d/hooks", site.ID), s.Token, strings.NewReader(hook), "Content-Type", "application/json")
		if got.Status != http.StatusUnprocessableEntity || !strings.Contains(string(got.Body), "this server itself") {
			t.Errorf("a hook %s: %d %s, want 422", hook, got.Status, got.Body)
		}
	}
}
