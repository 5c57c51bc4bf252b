package agentrpc_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev/internal/agentrpc"
)

func TestParseConfig(t *testing.T) {
	for _, test := range []struct {
		name     string
		yaml     string
		want     agentrpc.Config
		warnings []string
	}{
		{"empty", "", agentrpc.Config{}, nil},
		{"comment only", "# nothing yet\n", agentrpc.Config{}, nil},
		{"document marker", "---\n", agentrpc.Config{}, nil},
		{"null sections", "flux:\nobservability:\n  logging:\n", agentrpc.Config{}, nil},
		{"level", "observability:\n  logging:\n    level: debug\n", agentrpc.Config{LogLevel: "debug"}, nil},
		{"info is not nothing", "observability: {logging: {level: info}}", agentrpc.Config{LogLevel: "info"}, nil},
		{"warn", "observability: {logging: {level: warn}}", agentrpc.Config{LogLevel: "warn"}, nil},
		{"flux", "flux:\n  webhook_receiver_url: http://127.0.0.1:9292\n  selector: team in (a, b), !legacy\n",
			agentrpc.Config{Flux: agentrpc.FluxConfig{WebhookReceiverURL: "http://127.0.0.1:9292", Selector: "team in (a, b), !legacy"}}, nil},
		{"service proxy", "flux: {webhook_receiver_url: '/api/v1/namespaces/flux-system/services/http:webhook-receiver:80/proxy'}",
			agentrpc.Config{Flux: agentrpc.FluxConfig{WebhookReceiverURL: "/api/v1/namespaces/flux-system/services/http:webhook-receiver:80/proxy"}}, nil},
		{"alias", "flux: {selector: &s 'a=b', webhook_receiver_url: 'https://x'}\nci_access: {projects: [*s]}",
			agentrpc.Config{Flux: agentrpc.FluxConfig{WebhookReceiverURL: "https://x", Selector: "a=b"}}, []string{"ci_access is not supported yet"}},
		{"not supported yet", "gitops: 1\nci_access: {projects: [{id: a/b}]}\nuser_access: []\ncontainer_scanning: x\nremote_development: null\n" +
			"receptive: true\nobservability: {logging: {grpc_level: whatever}}\nflux: {enable_project_reconciliation: false}\n",
			agentrpc.Config{}, []string{
				"gitops is not supported yet", "ci_access is not supported yet", "user_access is not supported yet",
				"container_scanning is not supported yet", "remote_development is not supported yet", "receptive is not supported yet",
				"observability.logging.grpc_level is not supported yet", "flux.enable_project_reconciliation is not supported yet",
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, warnings, err := agentrpc.ParseConfig([]byte(test.yaml))
			if err != nil {
				t.Fatal(err)
			}
			if got != test.want || !slices.Equal(warnings, test.warnings) {
				t.Errorf("got %+v and %q, want %+v and %q", got, warnings, test.want, test.warnings)
			}
		})
	}
}

func TestParseConfigErrors(t *testing.T) {
	for _, test := range []struct{ name, yaml, want string }{
		{"unknown key", "flux:\n  selector: a\n  webhook: x\n", `line 3: unknown key "flux.webhook"`},
		{"unknown top key", "\nfluxx: {}\n", `line 2: unknown key "fluxx"`},
		{"merge key", "flux: &f {}\nobservability:\n  <<: *f\n", `line 3: unknown key "observability.<<"`},
		{"duplicate key", "flux: {}\nflux: {}\n", "line 2: flux is already set on line 1"},
		{"complex key", "? [a]\n: b\n", "line 1: a key must be a string, not a list"},
		{"scalar file", "hello", "line 1: the file must be a mapping, not a string"},
		{"list file", "- a\n", "line 1: the file must be a mapping, not a list"},
		{"wrong section", "\nflux: [1]\n", "line 2: flux must be a mapping, not a list"},
		{"wrong scalar", "observability:\n  logging:\n    level: 3\n", "line 3: observability.logging.level must be a string, not a number"},
		{"boolean", "flux: {selector: true}", "line 1: flux.selector must be a string, not a boolean"},
		{"mapping for text", "flux:\n  selector:\n    matchLabels: {a: b}\n", "line 3: flux.selector must be a string, not a mapping"},
		{"wrong level", "observability: {logging: {level: loud}}", `line 1: observability.logging.level must be debug, info, warn or error, not "loud"`},
		{"bad selector", "flux:\n  selector: 'a in b'\n", `line 2: flux.selector "a in b" is not a label selector: `},
		{"two documents", "flux: {}\n---\nflux: {}\n", "line 2: only one document is allowed"},
		{"not YAML", "a: b: c\n", "mapping values are not allowed in this context"},
		{"tabs", "flux:\n\tselector: x\n", "line 2: found character that cannot start any token"},
		{"control characters", "flux: \x01\n", "control characters are not allowed"},
		{"not UTF-8", "flux: \xff\xfe\n", "invalid"},
		{"cycle", "gitops: &a [*a]\n", `line 1: anchor "a" contains itself`},
		{"unknown anchor", "gitops: *nobody\n", "unknown anchor 'nobody' referenced"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := agentrpc.ParseConfig([]byte(test.yaml))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestReceiverURL(t *testing.T) {
	const proxy = "/api/v1/namespaces/flux-system/services/webhook-receiver/proxy"
	for _, test := range []struct {
		url string
		ok  bool
	}{
		{"http://localhost:9292", true},
		{"https://hooks.example/flux/", true},
		{"http://[::1]:80", true},
		{proxy, true},
		{proxy + "/", true},
		{proxy + "/sub/path", true},
		{"/api/v1/namespaces/a/services/b", false},
		{"/api/v1/namespaces/a/secrets/b/proxy", false},
		{"/apis/v1/namespaces/a/services/b/proxy", false},
		{"/api/v1/namespaces/a/services/b/proxyx", false},
		{"/api/v1/namespaces/a/b/services/b/proxy", false},
		{"/api/v1/namespaces//services/b/proxy", false},
		{proxy + "/../../../secrets", false},
		{proxy + "//x", false},
		{proxy + "/%2e%2e/x", false},
		{proxy + "?x", false},
		{proxy + "#x", false},
		{proxy + "/./x", false},
		{proxy + `/..\x`, false},
		{proxy + "/a b", false},
		{"//evil.example" + proxy, false},
		{"/etc/passwd", false},
		{"api/v1/namespaces/a/services/b/proxy", false},
		{"ftp://host", false},
		{"http://", false},
		{"http:host", false},
		{"http://user:secret@host", false},
		{"http://host?q=1", false},
		{"http://host#f", false},
		{"http://host\r\nX: y", false},
		{"file:///etc/passwd", false},
	} {
		text := fmt.Sprintf("flux:\n  webhook_receiver_url: %q\n", test.url)
		c, _, err := agentrpc.ParseConfig([]byte(text))
		if (err == nil) != test.ok {
			t.Errorf("%q: got %v, want ok %v", test.url, err, test.ok)
			continue
		}
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line 2: flux.webhook_receiver_url ") {
				t.Errorf("%q: %v", test.url, err)
			}
			continue
		}
		base, viaAPI := c.Flux.ReceiverURL()
		if base != strings.TrimRight(test.url, "/") || viaAPI != strings.HasPrefix(test.url, "/") {
			t.Errorf("%q: got base %q, viaAPI %v", test.url, base, viaAPI)
		}
	}
	if base, viaAPI := (agentrpc.FluxConfig{}).ReceiverURL(); base != agentrpc.DefaultWebhookReceiverURL || viaAPI {
		t.Errorf("default: got %q, %v", base, viaAPI)
	}
}

// TestParseConfigBombs gives what would take forever, or all memory, if it
// were expanded.
func TestParseConfigBombs(t *testing.T) {
	var laughs strings.Builder
	laughs.WriteString("gitops:\n  a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 30; i++ {
		fmt.Fprintf(&laughs, "  a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	for name, text := range map[string][]byte{
		"billion laughs": []byte(laughs.String()),
		"deep flow":      bytes.Repeat([]byte("["), 100_000),
		"deep mapping":   []byte("gitops: " + strings.Repeat("{a: ", 20_000)),
		"many keys":      []byte("gitops:\n" + strings.Repeat(" - a\n", 20_000)),
		"long key":       []byte(strings.Repeat("k", 100_000) + ": 1\n"),
		"too large":      bytes.Repeat([]byte("# a comment\n"), 1<<20/12),
		"one over":       bytes.Repeat([]byte("\n"), agentrpc.ConfigLimit+1),
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			_, _, err := agentrpc.ParseConfig(text)
			if err == nil {
				t.Fatal("accepted")
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("took %v", took)
			}
			if len(err.Error()) > 500 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
			t.Log(err)
		})
	}
	if _, _, err := agentrpc.ParseConfig(bytes.Repeat([]byte("\n"), agentrpc.ConfigLimit)); err != nil {
		t.Errorf("at the limit: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("flux: {selector: 'a=b'}"))
	f.Add([]byte("gitops: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, text []byte) { agentrpc.ParseConfig(text) })
}

func TestDigestOf(t *testing.T) {
	a := agentrpc.DigestOf(map[string]int64{"GitRepository/a/b": 1, "GitRepository/a/c": 2})
	for name, other := range map[string]map[string]int64{
		"number":  {"GitRepository/a/b": 1, "GitRepository/a/c": 3},
		"name":    {"GitRepository/a/b": 1, "GitRepository/a/d": 2},
		"fewer":   {"GitRepository/a/b": 1},
		"none":    nil,
		"swapped": {"GitRepository/a/b": 2, "GitRepository/a/c": 1},
	} {
		if bytes.Equal(a, agentrpc.DigestOf(other)) {
			t.Errorf("%s: the same digest", name)
		}
	}
	if !bytes.Equal(a, agentrpc.DigestOf(map[string]int64{"GitRepository/a/c": 2, "GitRepository/a/b": 1, "GitRepository/a/x": 0})) {
		t.Error("a source without a delivery changes the digest")
	}
	if len(a) != 32 {
		t.Errorf("got %d bytes", len(a))
	}
}
