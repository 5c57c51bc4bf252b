package health

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
	"tidelock.dev"
)

// sample reads an object from testdata. Its first line says what it is to be
// judged as: a health, a reason and, after a colon, what the message says.
func sample(t *testing.T, file string) (u *unstructured.Unstructured, want finding) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Scan()
	line, ok := strings.CutPrefix(lines.Text(), "# ")
	if !ok {
		t.Fatalf("%s does not begin with what is wanted", file)
	}
	words, message, _ := strings.Cut(line, ": ")
	health, reason, _ := strings.Cut(words, " ")
	return fromYAML(t, string(text)), finding{Health: tidelock.Health(health), Reason: reason, Message: message}
}

func fromYAML(t testing.TB, text string) *unstructured.Unstructured {
	t.Helper()
	body, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	u := new(unstructured.Unstructured)
	if err := json.Unmarshal(body, u); err != nil { // as the client does
		t.Fatal(err)
	}
	return u
}

func TestJudge(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/judge/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			t.Parallel()
			object, want := sample(t, file)
			got := judge(object)
			if got == nil {
				got = &healthy
			}
			if got.Health != want.Health || got.Reason != want.Reason || !strings.Contains(got.Message, want.Message) {
				t.Errorf("got %s %s: %s\nwant %s %s: %s", got.Health, got.Reason, got.Message, want.Health, want.Reason, want.Message)
			}
		})
	}
}

// Strangers write what they like into custom resources, and into messages.
func TestJudgeHostile(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("\u202e\x1b[31mü\x00<b>", 1<<17)
	for name, status := range map[string]any{
		"conditions are a string":    map[string]any{"conditions": "none"},
		"conditions are of strings":  map[string]any{"conditions": []any{"Ready", int64(1), nil}},
		"condition without a type":   map[string]any{"conditions": []any{map[string]any{"status": "False"}}},
		"type is a number":           map[string]any{"conditions": []any{map[string]any{"type": int64(1), "status": true}}},
		"status is a list":           []any{int64(1)},
		"generation is a string":     map[string]any{"observedGeneration": "seven"},
		"generation is huge":         map[string]any{"observedGeneration": int64(1) << 62},
		"a megabyte, and not nice":   map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": "False", "reason": long, "message": long}}},
		"stalled by a megabyte":      map[string]any{"conditions": []any{map[string]any{"type": "Stalled", "status": "True", "reason": long, "message": long}}},
		"container statuses of text": map[string]any{"phase": "Running", "containerStatuses": []any{"x"}},
		"container without a name":   map[string]any{"phase": "Running", "containerStatuses": []any{map[string]any{"name": int64(4), "state": map[string]any{"waiting": map[string]any{"reason": []any{}}}}}},
		"phase that nobody knows":    map[string]any{"phase": long},
		"nothing":                    nil,
	} {
		for _, kind := range []string{"apps/v1/Deployment", "v1/Pod", "batch/v1/Job", "v1/PersistentVolumeClaim", "apiregistration.k8s.io/v1/APIService", "example.org/v1/Widget"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				i := strings.LastIndex(kind, "/")
				u := &unstructured.Unstructured{Object: map[string]any{
					"apiVersion": kind[:i], "kind": kind[i+1:], "status": status,
					"metadata": map[string]any{"name": "x", "namespace": "y", "generation": int64(3)},
				}}
				check(t, judge(u))
			})
		}
	}
}

// check checks what holds of every finding.
func check(t testing.TB, f *finding) {
	t.Helper()
	if f == nil {
		return
	}
	switch f.Health {
	case tidelock.HealthFailed, tidelock.HealthProgressing, tidelock.HealthUnknown:
	default:
		t.Errorf("judged to be %q", f.Health)
	}
	if f.Reason == "" || len(f.Reason) > maxReason || len(f.Message) > maxMessage {
		t.Errorf("reason of %d bytes, message of %d", len(f.Reason), len(f.Message))
	}
	for _, text := range []string{f.Reason, f.Message} {
		if !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\x1b\u202e") {
			t.Errorf("not printable: %q", text)
		}
	}
}

func FuzzJudge(f *testing.F) {
	files, err := filepath.Glob("testdata/judge/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		body, err := yaml.YAMLToJSON(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		u := new(unstructured.Unstructured)
		if err := json.Unmarshal(body, u); err != nil {
			t.Skip()
		}
		verdict := judge(u)
		check(t, verdict)
		if again := judge(u); fmt.Sprint(again) != fmt.Sprint(verdict) {
			t.Errorf("judged %v, then %v", verdict, again)
		}
		_ = selector(u)
	})
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ message, want string }{
		{`pods "web-1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=0, limited: pods=0`, ReasonQuota},
		{`pods "web-1" is forbidden: failed quota: cpu: must specify limits.cpu for: app`, ReasonQuota},
		{`pods "web-1" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false`, ReasonPodSecurity},
		{`pods "web-1" is forbidden: maximum memory usage per Container is 1Mi, but limit is 1Gi`, ReasonLimitRange},
		{`pods "web-1" is forbidden: minimum cpu usage per Pod is 1, but request is 10m`, ReasonLimitRange},
		{`pods "web-1" is forbidden: cpu max limit to request ratio per Container is 2, but provided ratio is 4.0`, ReasonLimitRange},
		{`admission webhook "policy.example.org" denied the request: no latest tags`, "FailedCreate"},
	} {
		if got := refused(tidelock.HealthProgressing, "FailedCreate", test.message); got.Reason != test.want || got.Message != test.message {
			t.Errorf("%s:\ngot %s, want %s", test.message, got.Reason, test.want)
		}
	}
}

func TestMoved(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"10", "9", true}, {"9", "10", false}, {"9", "9", false}, {"9", "", true},
		{"", "", false}, {"b", "a", true}, {"a", "a", false}, {"18446744073709551616", "1", true},
	} {
		if got := moved(test.a, test.b); got != test.want {
			t.Errorf("moved(%q, %q) = %v, want %v", test.a, test.b, got, test.want)
		}
	}
}

// Soon what was seen last is not believed any more, if nothing is seen.
func TestTrouble(t *testing.T) {
	t.Parallel()
	resource := schema.GroupResource{Resource: "widgets"}
	for _, test := range []struct {
		name  string
		err   error
		since time.Duration
		want  *finding
	}{
		{"a moment", errors.New("connection refused"), 10 * time.Second, nil},
		{"too long", errors.New("connection refused"), 2 * time.Minute, &finding{Health: tidelock.HealthUnknown, Reason: ReasonUnreachable, Message: "connection refused"}},
		{"refused", apierrors.NewForbidden(resource, "", nil), 0, &finding{Health: tidelock.HealthUnknown, Reason: ReasonForbidden}},
		{"not served", errNoKind, 0, &finding{Health: tidelock.HealthMissing, Reason: ReasonNoKind}},
		{"too many", errTooMany, 0, &finding{Health: tidelock.HealthUnknown, Reason: ReasonTooMany}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var failing trouble
			failing.note(test.err)
			time.Sleep(test.since)
			failing.note(test.err)
			got := failing.veil(test.err)
			if (got == nil) != (test.want == nil) {
				t.Fatalf("%s: got %v, want %v", test.name, got, test.want)
			}
			if got != nil && (got.Health != test.want.Health || got.Reason != test.want.Reason || !strings.Contains(got.Message, test.want.Message)) {
				t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
			}
		})
	}
}

// A workload that goes on ailing in the same way is looked at less and less.
func TestIllnessWait(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, test := range []struct {
		ill  illness
		want time.Duration
	}{
		{illness{since: now}, patience},
		{illness{since: now.Add(-time.Hour)}, blamePace},
		{illness{since: now, lookedAt: now}, blamePace},
		{illness{since: now, lookedAt: now, same: 2}, 4 * blamePace},
		{illness{since: now, lookedAt: now.Add(-time.Second), same: 2}, 4*blamePace - time.Second},
		{illness{since: now, lookedAt: now, same: 8}, slowBlamePace},
		{illness{since: now, lookedAt: now.Add(-time.Hour), same: 8}, blamePace},
	} {
		if got := test.ill.wait(now); got != test.want {
			t.Errorf("%+v waits %s, want %s", test.ill, got, test.want)
		}
	}
}
