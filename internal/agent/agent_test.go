package agent_test

import (
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"tidelock.dev"
	"tidelock.dev/internal/agent"
	"tidelock.dev/internal/agentrpc"
)

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// The whole of a replica's life, without Flux: it connects, registers, leads,
// sends its set, takes its configuration, and goes in good order.
func TestAgent(t *testing.T) {
	f, k := newForge(t), newKube(t)
	r := start(t, f, k)
	eventually(t, "registered as the leader", func() bool {
		return heard(f, func() bool { return len(f.registers) == 2 && f.registers[1].Leader })
	})
	first := heard(f, func() *agentrpc.RegisterRequest { return f.registers[0] })
	if first.Leader || first.Instance == "" || first.Version != "1.2.3" || first.PodName != "pod" || first.KubernetesVersion != "v1.34.4" {
		t.Errorf("registered: got %v", first)
	}
	eventually(t, "the empty set", func() bool {
		return heard(f, func() bool { return len(f.sources) == 1 && f.sources[0].Complete && len(f.sources[0].Upserts) == 0 })
	})
	if holder := k.holder(f.lease()); !strings.HasPrefix(holder, "pod_") {
		t.Errorf("the Lease is held by %q", holder)
	}

	eventually(t, "ready", func() bool { code, _ := get(t, "http://"+r.Addr()+"/readyz"); return code == http.StatusOK })
	if _, body := get(t, "http://"+r.Addr()+"/readyz"); !strings.Contains(body, "Flux is not installed") || !strings.Contains(body, "this replica") {
		t.Errorf("readyz: got %q", body)
	}
	if code, _ := get(t, "http://"+r.Addr()+"/healthz"); code != http.StatusOK {
		t.Errorf("healthz: got %d", code)
	}
	_, metrics := get(t, "http://"+r.Addr()+"/metrics")
	for _, want := range []string{
		"tidelock_agent_connected 1", "tidelock_agent_leader 1", `tidelock_agent_connects_total{outcome="ok"} 1`,
		"tidelock_agent_oldest_unhandled_seconds 0", "tidelock_agent_oldest_unconverged_seconds 0",
		`tidelock_agent_triggers_total{outcome="ok",via="receiver"} 0`, "tidelock_agent_sources_served 0",
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("metrics lack %q", want)
		}
	}

	f.config <- &agentrpc.WatchResponse{Yaml: "observability: {logging: {level: debug}}\nflux: {selector: team=blue}", Commit: "abc"}
	eventually(t, "the log level", func() bool { return r.level.Level() == slog.LevelDebug })
	f.config <- &agentrpc.WatchResponse{Yaml: "flux: {no_such_key: 1}", Error: "line 3: bad", Warnings: []string{"gitops is not supported yet"}}
	eventually(t, "the bad file", func() bool {
		return r.log.has("line 3: bad") && r.log.has("no_such_key") && r.log.has("gitops is not supported yet")
	})
	if r.level.Level() != slog.LevelDebug {
		t.Error("a bad file changed the log level")
	}
	f.config <- &agentrpc.WatchResponse{}
	eventually(t, "the default log level", func() bool { return r.level.Level() == slog.LevelInfo })

	began := time.Now()
	if err := r.stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s to stop", took)
	}
	eventually(t, "the session's end", func() bool { return heard(f, func() bool { return len(f.closed) == 1 && f.streams == 0 }) })
	if err := heard(f, func() error { return f.closed[0] }); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("the server was told %v", err)
	}
	if holder := k.holder(f.lease()); holder != "" {
		t.Errorf("the Lease is still held by %q", holder)
	}
	if r.log.has(f.token) {
		t.Error("the token was logged")
	}
}

func TestAgentReconnects(t *testing.T) {
	f, k := newForge(t), newKube(t)
	r := start(t, f, k)
	sets := func(n int) func() bool {
		return func() bool {
			return heard(f, func() bool { return len(f.sources) == n && f.streams == 1 && f.sources[n-1].Complete })
		}
	}
	eventually(t, "the first set", sets(1))
	holder := k.holder(f.lease())
	f.cut()
	eventually(t, "the second set", sets(2))
	if !r.Status().Leader || k.holder(f.lease()) != holder {
		t.Error("leadership went with the connection")
	}
	registers := heard(f, func() []*agentrpc.RegisterRequest { return f.registers })
	last := registers[len(registers)-1]
	if !last.Leader || last.Instance != registers[0].Instance {
		t.Errorf("registered again as %v", last)
	}
}

func TestAgentTokenRefused(t *testing.T) {
	f, k := newForge(t), newKube(t)
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte("glagent-revoked\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, f, k, func(c *agent.Config) { c.TokenFile = tokenFile })
	eventually(t, "a clear word", func() bool { return r.log.has("token refused") && r.log.has("the token is unknown") })
	code, body := get(t, "http://"+r.Addr()+"/readyz")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "the token is unknown") {
		t.Errorf("readyz: got %d %q", code, body)
	}
	if code, _ := get(t, "http://"+r.Addr()+"/healthz"); code != http.StatusOK {
		t.Errorf("healthz: got %d; restarting does not help", code)
	}
	if n := heard(f, func() int { return f.dials }); n != 1 {
		t.Errorf("dialled %d times", n)
	}
	if r.log.has("glagent-revoked") {
		t.Error("the token was logged")
	}
	if err := r.stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
}

// The other replica takes over when the leader goes.
func TestAgentTwoReplicas(t *testing.T) {
	f, k := newForge(t), newKube(t)
	one := start(t, f, k)
	eventually(t, "the first leads", func() bool { return one.Status().Leader })
	two := start(t, f, k)
	eventually(t, "the second is connected", func() bool { return two.Status().Connected })
	if two.Status().Leader {
		t.Fatal("both lead")
	}
	if err := one.stop(); err != nil {
		t.Error(err)
	}
	eventually(t, "the second leads and announces", func() bool {
		return two.Status().Leader && heard(f, func() bool { return f.streams == 1 && len(f.sources) == 2 })
	})
}

// A process that began as one agent never goes on as another.
func TestAgentOfAnotherName(t *testing.T) {
	f, k := newForge(t), newKube(t)
	r := start(t, f, k)
	eventually(t, "connected", func() bool { return r.Status().Connected })
	f.mu.Lock()
	f.agentID = 8
	f.mu.Unlock()
	f.cut()
	select {
	case <-r.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
	if r.err == nil || !strings.Contains(r.err.Error(), "agent 8") {
		t.Errorf("ended with %v", r.err)
	}
}

func TestConfigValidate(t *testing.T) {
	err := agent.Config{ServerURL: "ftp://forge.example"}.Validate()
	if err == nil {
		t.Fatal("it is valid")
	}
	for _, want := range []string{"--server-url", "--token", "--kubeconfig", "--lease-namespace"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not mention %s", err, want)
		}
	}
	good := agent.Config{ServerURL: "https://forge.example", Token: tidelock.NewSecret("x"), REST: &rest.Config{}, LeaseNamespace: "a"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for _, url := range []string{"https://", "forge.example", "https://me:secret@forge.example", "https://forge.example?x", "\x00"} {
		bad := good
		bad.ServerURL = url
		if err := bad.Validate(); err == nil {
			t.Errorf("%q is valid", url)
		}
	}
}
