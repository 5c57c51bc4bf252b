package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"tidelock.dev/playground/e2e"
)

// A way is the timeline of a commit as the forge tells it.
type way struct {
	Places []struct {
		Source, Applier, State, Message string
		AcceptedAt                      time.Time `json:"accepted_at"`
		Hops                            []struct {
			Hop, State string
			At         *time.Time
		}
	}
}

// A push can be followed to the end, from a source of Git and from one of OCI,
// and a job can wait for it.
func TestTimeline(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	f.Trust(ns)
	p := f.Project("team/delivery", "public")
	p.Grant()
	files := func(value, extra string) map[string]string {
		made := map[string]string{".tidelock/delivery.yaml": "applications:\n- {name: shop, path: shop}\n", "deploy/extra.yaml": extra}
		for path, text := range e2e.ConfigMap("direct", value) {
			made[path] = text
		}
		for path, text := range e2e.ConfigMap("packed", value) {
			made["shop/"+path] = text
		}
		return made
	}
	const fine = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra}\n"
	p.Push("main", files("first", fine))
	f.Source(ns, "direct", p, e2e.Branch("main"))
	f.Apply(ns, "direct")
	f.ImageSource(ns, "packed", f.Image("team/delivery/shop"), nil)
	f.ApplyImage(ns, "packed")
	waitConfigMap(t, f, ns, "direct", "first")
	waitConfigMap(t, f, ns, "packed", "first")
	f.WaitServed(ns, "direct")
	f.WaitServed(ns, "packed")

	// A command as a job of CI/CD starts it.
	job := func(commit string, args ...string) (code int, said string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), e2e.Binary(t), args...)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "TIDELOCK_URL=", "CI_SERVER_URL="+f.URL, "GITLAB_TOKEN="+f.Token, "CI_SERVER_TLS_CA_FILE="+f.CAFile,
			fmt.Sprintf("CI_PROJECT_ID=%d", p.ID), "CI_COMMIT_SHA="+commit, "XDG_CONFIG_HOME="+cmd.Dir)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		exit, exited := errors.AsType[*exec.ExitError](err)
		if err != nil && !exited {
			t.Fatal(err)
		}
		if exited {
			code = exit.ExitCode()
		}
		return code, out.String()
	}
	wait := func(commit string, args ...string) (code int, said string) {
		t.Helper()
		return job(commit, append([]string{"wait"}, args...)...)
	}

	good := p.Push("main", files("second", fine))
	if code, said := wait(good, "--timeout", "1m"); code != 0 {
		t.Fatalf("exited with %d: %s", code, said)
	}
	const packedHops = "accepted packaged announced triggered fetched applied healthy reported"
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		var w way
		if err := f.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/repository/commits/%s/timeline", p.ID, good), nil, &w); err != nil {
			return err
		}
		want := map[string]string{
			"Kustomization/" + ns + "/direct": "accepted announced triggered fetched applied healthy reported",
			"Kustomization/" + ns + "/packed": packedHops,
		}
		if len(w.Places) != len(want) {
			return fmt.Errorf("there are %d places, want %d: %+v", len(w.Places), len(want), w.Places)
		}
		for _, place := range w.Places {
			var hops []string
			last := place.AcceptedAt
			for _, h := range place.Hops {
				if h.State != "done" || h.At == nil || h.At.Before(last) {
					return fmt.Errorf("%s: %s is %s at %v, after %v", place.Applier, h.Hop, h.State, h.At, last)
				}
				last = *h.At
				hops = append(hops, h.Hop)
			}
			if got := strings.Join(hops, " "); got != want[place.Applier] || place.State != "success" {
				return fmt.Errorf("%s: %s: got %s, want %s", place.Applier, place.State, got, want[place.Applier])
			}
			t.Logf("%s: %s from the push to the report", place.Applier, last.Sub(place.AcceptedAt).Round(time.Millisecond))
		}
		return nil
	})

	drawn := "Kustomization/" + ns + "/packed on test  live\n"
	for hop := range strings.FieldsSeq(packedHops) {
		drawn += "  " + hop + ` +\+\d.*\n`
	}
	if code, said := job(good, "trace"); code != 0 || !regexp.MustCompile(drawn).MatchString(said) {
		t.Errorf("tidelock trace exited with %d: %s\nwant in it: %s", code, said, drawn)
	}

	bad := p.Push("main", files("second", "apiVersion: v1\nkind: NoSuchKind\nmetadata: {name: extra}\n"))
	if code, said := wait(bad, "--timeout", "1m", "--environment", "test/"+ns); code != 1 || !strings.Contains(said, "NoSuchKind") {
		t.Errorf("of a commit that fails: exited with %d: %s", code, said)
	}
	aside := p.Push("aside", map[string]string{"README.md": "nobody follows this"})
	if code, said := wait(aside, "--timeout", "2s"); code != 3 || !strings.Contains(said, "nothing deploys this commit") {
		t.Errorf("of a commit that nobody follows: exited with %d: %s", code, said)
	}
	if code, said := wait(good); code != 0 {
		t.Errorf("of the commit that is still live: exited with %d: %s", code, said)
	}
}
