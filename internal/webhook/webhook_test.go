package webhook_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/seal"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/webhook"
)

// TestT26 holds a call against what receivers compare: the URL as it was
// given, the token exactly, and the headers that GitLab sends.
func TestT26(t *testing.T) {
	w := newWorld(t)
	rec := newReceiver(t, nil)
	secret := tidelock.NewSecret("tøken with spaces")
	w.hook(rec.URL+"/hook/0123456789abcdef", func(f *forge.HookFields) {
		f.Token = &secret
		f.Headers = &[]tidelock.HookHeader{{Name: "X-Custom", Value: tidelock.NewSecret("own")}}
	})
	first := w.commit("first", nil, "a=1", "b=1")
	second := w.commit("second\n\nwith a body\n", []string{first}, "a=2", "c=1")
	w.push("refs/heads/main=" + second)
	w.run()
	w.eventually("the call", func() bool { return len(rec.received()) == 1 })

	got := rec.received()[0]
	if got.uri != "/hook/0123456789abcdef" {
		t.Errorf("called %q", got.uri)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "Tidelock/1.2", "X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": "tøken with spaces",
		"X-Gitlab-Instance": "https://forge.example/base", "X-Custom": "own", "Authorization": "", "Accept-Encoding": "",
	} {
		if v := got.header.Get(name); v != want {
			t.Errorf("%s: got %q, want %q", name, v, want)
		}
	}
	for _, name := range []string{"Idempotency-Key", "X-Gitlab-Webhook-UUID", "X-Gitlab-Event-UUID"} {
		if len(got.header.Get(name)) != 36 {
			t.Errorf("%s: got %q, want a UUID", name, got.header.Get(name))
		}
	}
	body := got.json(t)
	project := body["project"].(map[string]any)
	commits := body["commits"].([]any)
	last := commits[1].(map[string]any)
	for name, tt := range map[string][2]any{
		"object_kind":         {body["object_kind"], "push"},
		"event_name":          {body["event_name"], "push"},
		"before":              {body["before"], strings.Repeat("0", 40)},
		"after":               {body["after"], second},
		"ref":                 {body["ref"], "refs/heads/main"},
		"checkout_sha":        {body["checkout_sha"], second},
		"user_username":       {body["user_username"], "root"},
		"user_id":             {body["user_id"], float64(w.root.User.ID)},
		"project_id":          {body["project_id"], float64(w.project.ID)},
		"path":                {project["path_with_namespace"], "team/site"},
		"git_http_url":        {project["git_http_url"], "https://forge.example/base/team/site.git"},
		"git_ssh_url":         {project["git_ssh_url"], "ssh://git@forge.example:2222/team/site.git"},
		"visibility":          {project["visibility_level"], float64(0)},
		"repository":          {body["repository"].(map[string]any)["git_http_url"], "https://forge.example/base/team/site.git"},
		"total_commits_count": {body["total_commits_count"], float64(2)},
		"first commit":        {commits[0].(map[string]any)["id"], first},
		"id":                  {last["id"], second},
		"message":             {last["message"], "second\n\nwith a body\n"},
		"title":               {last["title"], "second"},
		"timestamp":           {last["timestamp"], "2023-11-14T23:43:20+01:30"},
		"url":                 {last["url"], "https://forge.example/base/team/site/-/commit/" + second},
		"author":              {fmt.Sprint(last["author"]), "map[email:ada@example.org name:Ada]"},
		"added":               {fmt.Sprint(last["added"]), "[c]"},
		"modified":            {fmt.Sprint(last["modified"]), "[a]"},
		"removed":             {fmt.Sprint(last["removed"]), "[b]"},
		"first added":         {fmt.Sprint(commits[0].(map[string]any)["added"]), "[a b]"},
	} {
		if tt[0] != tt[1] {
			t.Errorf("%s: got %v, want %v", name, tt[0], tt[1])
		}
	}
}

func TestPushPayloads(t *testing.T) {
	w := newWorld(t)
	rec := newReceiver(t, nil)
	tags := newReceiver(t, nil)
	w.hook(rec.URL)
	w.hook(tags.URL, kinds("tag_push"))
	w.run()
	base := w.commit("base", nil, "a=1")
	w.push("refs/heads/main=" + base)
	next := w.commit("next", []string{base}, "a=2")
	feature := w.commit("feature", []string{base}, "b=1")
	w.push("refs/heads/main=" + next)
	w.push("refs/heads/feature=" + feature)
	w.push("refs/heads/feature=")
	w.push("refs/tags/v1=" + next)
	w.push("refs/tags/v1=")
	zeros := strings.Repeat("0", 40)
	type summary struct {
		Ref, Before, After string
		Checkout           any
		Commits            int
	}
	summaries := func(rec *receiver) (all []summary) {
		for _, c := range rec.received() {
			body := c.json(t)
			all = append(all, summary{body["ref"].(string), body["before"].(string), body["after"].(string), body["checkout_sha"], int(body["total_commits_count"].(float64))})
		}
		slices.SortFunc(all, func(a, b summary) int { return strings.Compare(a.Ref+a.Before, b.Ref+b.Before) })
		return all
	}
	w.eventually("all calls", func() bool { return len(rec.received()) == 4 && len(tags.received()) == 2 })
	want := []summary{
		{"refs/heads/feature", zeros, feature, feature, 1}, // what the default branch does not have
		{"refs/heads/feature", feature, zeros, nil, 0},
		{"refs/heads/main", zeros, base, base, 1},
		{"refs/heads/main", base, next, next, 1},
	}
	if diff := cmp.Diff(slices.SortedFunc(slices.Values(want), func(a, b summary) int { return strings.Compare(a.Ref+a.Before, b.Ref+b.Before) }), summaries(rec)); diff != "" {
		t.Errorf("pushes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]summary{{"refs/tags/v1", zeros, next, next, 0}, {"refs/tags/v1", next, zeros, nil, 0}}, summaries(tags)); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	if kind := tags.received()[0].header.Get("X-Gitlab-Event"); kind != "Tag Push Hook" {
		t.Errorf("X-Gitlab-Event: got %q", kind)
	}
}

// A payload stays small, whatever was pushed.
func TestLargePush(t *testing.T) {
	w := newWorld(t)
	rec := newReceiver(t, nil)
	w.hook(rec.URL)
	w.run()
	parent := []string{}
	for i := range 25 {
		parent = []string{w.commit(fmt.Sprint(i, " ", strings.Repeat("x", 100_000)), parent, fmt.Sprint("f", i, "=1"))}
	}
	w.push("refs/heads/main=" + parent[0])
	w.eventually("the call", func() bool { return len(rec.received()) == 1 })
	body := rec.received()[0].json(t)
	if n := len(rec.received()[0].body); n > 1<<20 {
		t.Errorf("the payload has %d bytes", n)
	}
	if got := [2]any{len(body["commits"].([]any)), body["total_commits_count"]}; got != [2]any{20, float64(25)} {
		t.Errorf("got %v commits and count, want 20 and 25", got)
	}
}

func TestBranchFilter(t *testing.T) {
	w := newWorld(t)
	filtered := func(match tidelock.BranchMatch, filter string) *receiver {
		rec := newReceiver(t, nil)
		w.hook(rec.URL, func(f *forge.HookFields) { f.BranchMatch, f.BranchFilter = &match, &filter })
		return rec
	}
	tests := []struct {
		rec  *receiver
		want string
	}{
		{filtered(tidelock.BranchWildcard, ""), "main release/1 release/2/x"},
		{filtered(tidelock.BranchWildcard, "release/*"), "release/1 release/2/x"},
		{filtered(tidelock.BranchWildcard, "main"), "main"},
		{filtered(tidelock.BranchRegex, "^release/[0-9]+$"), "release/1"},
		{filtered(tidelock.AllBranches, "main"), "main release/1 release/2/x"},
	}
	w.run()
	c := w.commit("c", nil, "a=1")
	w.push("refs/heads/main="+c, "refs/heads/release/1="+c, "refs/heads/release/2/x="+c)
	for i, tt := range tests {
		want := strings.Fields(tt.want)
		w.eventually(fmt.Sprint("the calls of hook ", i), func() bool { return len(tt.rec.received()) >= len(want) })
		var got []string
		for _, c := range tt.rec.received() {
			got = append(got, strings.TrimPrefix(c.json(t)["ref"].(string), "refs/heads/"))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("hook %d: got %v, want %v", i, got, want)
		}
	}
}

// A receiver that fails gets the same again, under the same key, until it
// takes it.
func TestRetry(t *testing.T) {
	w := newWorld(t)
	w.timeout = 500 * time.Millisecond
	rec := newReceiver(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
		case 2:
			panic(http.ErrAbortHandler) // closes the connection
		case 3:
			<-r.Context().Done() // hangs until it is given up
		}
	})
	hook := w.hook(rec.URL)
	w.run()
	w.pushes("main", 1)
	w.eventually("four calls and a success", func() bool {
		d := w.deliveries(hook.ID)
		return len(d) == 1 && d[0].State == tidelock.DeliveryDone
	})
	calls := rec.received()
	if len(calls) < 4 {
		t.Fatalf("got %d calls, want 4", len(calls))
	}
	for _, c := range calls[1:] {
		for _, name := range []string{"Idempotency-Key", "X-Gitlab-Webhook-UUID", "X-Gitlab-Event-UUID"} {
			if c.header.Get(name) != calls[0].header.Get(name) {
				t.Errorf("%s changed between attempts", name)
			}
		}
		if string(c.body) != string(calls[0].body) {
			t.Error("the body changed between attempts")
		}
	}
	// net/http repeats by itself what met a connection that was closed.
	if d := w.deliveries(hook.ID)[0]; d.Tries < 3 || d.Attempt.Status != 200 {
		t.Errorf("got %d tries and status %d, want 3 or 4 and 200", d.Tries, d.Attempt.Status)
	}
}

func TestGivenUp(t *testing.T) {
	tests := []struct {
		name   string
		status int
		tries  int
		says   string
	}{
		{"fails", 500, 8, ""},
		{"refuses", 404, 4, ""},
		{"is busy", 429, 8, ""},
		{"redirects", 302, 4, "redirects"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			elsewhere := newReceiver(t, nil)
			rec := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", elsewhere.URL)
				w.WriteHeader(tt.status)
			})
			hook := w.hook(rec.URL)
			w.run()
			w.pushes("main", 1)
			w.eventually("it is given up", func() bool {
				d := w.deliveries(hook.ID)
				return len(d) == 1 && d[0].State == tidelock.DeliveryFailed
			})
			d := w.deliveries(hook.ID)[0]
			if d.Tries != tt.tries || len(rec.received()) != tt.tries || d.Attempt.Status != tt.status {
				t.Errorf("got %d tries, %d calls and status %d, want %d tries and %d", d.Tries, len(rec.received()), d.Attempt.Status, tt.tries, tt.status)
			}
			if !strings.Contains(d.Attempt.Error, tt.says) {
				t.Errorf("got error %q, want one that says %q", d.Attempt.Error, tt.says)
			}
			for name, want := range map[string]float64{
				"tidelock_webhook_calls_total refused": float64(tt.tries), "tidelock_webhook_call_seconds": float64(tt.tries),
				"tidelock_webhook_given_up_total": 1, "tidelock_webhook_calls_total delivered": 0,
			} {
				w.eventually(fmt.Sprintf("%s is %v", name, want), func() bool { return w.metric(name) == want })
			}
			if n := len(elsewhere.received()); n != 0 {
				t.Errorf("a redirect was followed %d times", n)
			}
		})
	}
}

// TestH10Rebind: a name that passed when the hook was made and leads elsewhere
// later is refused when it is called.
func TestH10Rebind(t *testing.T) {
	w := newWorld(t)
	inside := newReceiver(t, nil)
	_, port, _ := strings.Cut(strings.TrimPrefix(inside.URL, "http://"), ":")
	// The guard that looked at the name allowed it; the one that dials does not.
	hook := w.hook("http://localhost:" + port + "/x")
	strict, err := webhook.NewGuard(webhook.GuardConfig{})
	must(t, err)
	w.guard = strict
	worker := w.worker()
	w.pushes("main", 1)
	attempt, err := worker.Test(t.Context(), w.root, w.project, hook.ID, tidelock.HookPush)
	must(t, err)
	if attempt.Delivered() || !strings.Contains(attempt.Error, "loopback") {
		t.Errorf("got %+v, want a refusal that names loopback", attempt)
	}
	if n := len(inside.received()); n != 0 {
		t.Errorf("loopback was called %d times", n)
	}
}

// A receiver that says when to come back is not called before.
func TestRetryAfter(t *testing.T) {
	w := newWorld(t)
	rec := newReceiver(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	w.hook(rec.URL)
	w.run()
	began := time.Now()
	w.pushes("main", 1)
	w.eventually("a second call", func() bool { return len(rec.received()) == 2 })
	if took := time.Since(began); took < time.Second {
		t.Errorf("called again after %s, want a second at least", took)
	}
}

// One receiver that hangs keeps no other waiting, and what one ref is told
// comes in order.
func TestSlowReceiverDelaysNobody(t *testing.T) {
	w := newWorld(t)
	slow := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	quick := newReceiver(t, nil)
	w.hook(slow.URL)
	w.hook(quick.URL)
	w.run()
	const n = 12
	began := time.Now()
	w.pushes("main", n)
	w.eventually("all calls", func() bool { return len(quick.received()) == n })
	if took := time.Since(began); took > w.timeout {
		t.Errorf("it took %s, as long as the slow one", took)
	}
	var want []string
	for i := range n {
		want = append(want, fmt.Sprint("main", i))
	}
	if got := quick.messages(t); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := len(slow.received()); got > 4 {
		t.Errorf("the slow receiver was called %d times meanwhile", got)
	}
}

// Whoever dies between two steps leaves what was pushed to the next one.
func TestNothingIsLost(t *testing.T) {
	w := newWorld(t)
	var down atomic.Bool
	down.Store(true)
	rec := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			<-r.Context().Done()
		}
	})
	hook := w.hook(rec.URL)
	w.pushes("main", 1) // noted, never expanded: nobody runs
	w.run()
	w.eventually("the first call", func() bool { return len(rec.received()) == 1 })
	w.stop() // in the middle of a call

	// A claim without an end is what kill -9 leaves behind.
	w.pushes("dev", 1)
	events, err := w.store.HookEvents(t.Context(), 0, 10)
	must(t, err)
	if len(events) != 1 {
		t.Fatalf("got %d events, want 1", len(events))
	}
	lost := tidelock.Delivery{Hook: hook.ID, Kind: tidelock.HookPush, Ref: "refs/heads/dev", UUID: "left behind", Event: "e", Body: []byte(`{"commits":[]}`), NextAt: time.Now()}
	must(t, w.store.ExpandHookEvent(t.Context(), events[0].ID, []tidelock.Delivery{lost}, 100))
	now := time.Now()
	claimed, err := w.store.ClaimDeliveries(t.Context(), tidelock.Claim{Now: now, Until: now.Add(300 * time.Millisecond), Limit: 10, PerHook: 4, Yield: 3})
	must(t, err)
	if len(claimed) == 0 {
		t.Fatal("nothing was claimed")
	}

	down.Store(false)
	w.run()
	w.eventually("both were delivered", func() bool {
		done := 0
		for _, d := range w.deliveries(hook.ID) {
			if d.State == tidelock.DeliveryDone {
				done++
			}
		}
		return done == 2
	})
	keys := map[string]bool{}
	for _, c := range rec.received() {
		keys[c.header.Get("Idempotency-Key")] = true
	}
	if len(keys) != 2 || !keys["left behind"] {
		t.Errorf("got keys %v, want two, one of them %q", keys, "left behind")
	}
}

// An event that cannot be made into deliveries, here because its hook was
// sealed with a key that is lost, holds up no other, and stays.
func TestOddEventHoldsUpNobody(t *testing.T) {
	w := newWorld(t)
	lost, err := seal.New(bytes.Repeat([]byte{1}, 32))
	must(t, err)
	elsewhere, err := store.Open(t.Context(), store.Config{URL: w.url, Seal: lost, Log: w.log})
	must(t, err)
	defer elsewhere.Close()
	odd, err := w.CreateProject(t.Context(), w.root, forge.NewProject{Namespace: w.project.Namespace, Path: "odd", Visibility: tidelock.Private})
	must(t, err)
	_, err = elsewhere.CreateHook(t.Context(), tidelock.Hook{Project: odd.ID, URL: "http://127.0.0.1:1", Kinds: []tidelock.HookKind{tidelock.HookPush}}, 10)
	must(t, err)
	for i := range 150 { // more than are read at once
		object := tidelock.CommitID(fmt.Sprint(i))
		_, err = w.store.RecordPush(t.Context(), tidelock.Push{Project: odd.ID, Updates: []tidelock.RefUpdate{{Ref: "refs/heads/main", New: object, Commit: object}}})
		must(t, err)
	}

	rec := newReceiver(t, nil)
	w.hook(rec.URL)
	w.pushes("main", 1)
	w.run()
	w.eventually("the call of the other project's hook", func() bool { return len(rec.received()) == 1 })
	w.eventually("it is counted", func() bool { return w.metric("tidelock_webhook_calls_total delivered") == 1 })
	if n := w.metric("tidelock_webhook_stuck_projects"); n != 1 {
		t.Errorf("got %v projects that are stuck, want 1", n)
	}
	w.stop()
	left, err := w.store.HookEvents(t.Context(), 0, 1000)
	must(t, err)
	if len(left) != 150 {
		t.Errorf("got %d events left, want 150", len(left))
	}
}

// That the server stops is no failure of the receiver.
func TestStoppingCountsForNothing(t *testing.T) {
	w := newWorld(t)
	rec := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	hook := w.hook(rec.URL)
	w.pushes("main", 1)
	w.run()
	w.eventually("the call", func() bool { return len(rec.received()) == 1 })
	w.stop()
	read, err := w.store.Hook(t.Context(), hook.ID)
	must(t, err)
	if read.Failures != 0 {
		t.Errorf("got %d failures, want none", read.Failures)
	}
	if n := w.metric("tidelock_webhook_call_seconds"); n != 0 {
		t.Errorf("%v calls were counted, want none", n)
	}
	if tried := w.deliveries(hook.ID); len(tried) != 0 {
		t.Errorf("got %d deliveries that were tried, want none", len(tried))
	}
}

// A hook that fails is left alone for a while, and what waited is sent then.
func TestHeldHook(t *testing.T) {
	w := newWorld(t)
	var up atomic.Bool
	rec := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	hook := w.hook(rec.URL)
	for i := range 6 {
		w.pushes(fmt.Sprint("branch", i), 1) // six lanes, all of which are due
	}
	w.run()
	failures := func() (int, time.Time) {
		h, err := w.Hook(t.Context(), w.root, w.project, hook.ID)
		must(t, err)
		return h.Failures, h.HeldUntil
	}
	w.eventually("it is held", func() bool {
		n, until := failures()
		return n >= 4 && !until.IsZero()
	})
	up.Store(true)
	w.eventually("all were delivered", func() bool {
		done := 0
		for _, d := range w.deliveries(hook.ID) {
			if d.State == tidelock.DeliveryDone {
				done++
			}
		}
		return done == 6
	})
	if n, until := failures(); n != 0 || !until.IsZero() {
		t.Errorf("after a success: got %d failures, held until %s", n, until)
	}
}

func TestCredentialsStayOut(t *testing.T) {
	w := newWorld(t)
	rec := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "session=s3cret")
		fmt.Fprint(w, strings.Repeat("é", 10_000), "\xff")
	})
	token := tidelock.NewSecret("s3cret-token")
	hook := w.hook("http://ada:s3cret-password@"+strings.TrimPrefix(rec.URL, "http://")+"/x?y=1", func(f *forge.HookFields) {
		f.Token = &token
		f.Headers = &[]tidelock.HookHeader{{Name: "x-key", Value: tidelock.NewSecret("s3cret-header")}}
	})
	w.run()
	w.pushes("main", 1)
	w.eventually("the call", func() bool { return len(w.deliveries(hook.ID)) == 1 })
	user, password, _ := (&http.Request{Header: rec.received()[0].header}).BasicAuth()
	if user != "ada" || password != "s3cret-password" || rec.received()[0].uri != "/x?y=1" {
		t.Errorf("got Basic %q:%q at %q", user, password, rec.received()[0].uri)
	}
	d := w.deliveries(hook.ID)[0]
	if text := fmt.Sprintf("%+v", d); strings.Contains(text, "s3cret") {
		t.Errorf("a secret is kept with the delivery: %s", text)
	}
	for _, name := range []string{"Authorization", "X-Gitlab-Token", "X-Key"} {
		if d.Attempt.Request[name] != "[REDACTED]" {
			t.Errorf("%s: got %q", name, d.Attempt.Request[name])
		}
	}
	if n := len(d.Attempt.Answer); n > 8<<10+8 || n < 8<<10-8 {
		t.Errorf("%d bytes of the answer were kept", n)
	}
	audit, _, err := w.store.AuditEvents(t.Context(), tidelock.AuditFilter{}, tidelock.Page{})
	must(t, err)
	if text := fmt.Sprintf("%+v", audit); strings.Contains(text, "s3cret") || !strings.Contains(text, "hook created") {
		t.Errorf("the audit log says %s", text)
	}
}

func TestCertificates(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	server.Config.ErrorLog = nil
	skip := true
	strict, lax := w.hook(server.URL), w.hook(server.URL, func(f *forge.HookFields) { f.SkipVerify = &skip })
	w.pushes("main", 1)
	worker := w.worker()
	attempt, err := worker.Test(t.Context(), w.root, w.project, strict.ID, tidelock.HookPush)
	must(t, err)
	if !strings.Contains(attempt.Error, "certificate") {
		t.Errorf("an unknown certificate: got %+v", attempt)
	}
	attempt, err = worker.Test(t.Context(), w.root, w.project, lax.ID, tidelock.HookPush)
	must(t, err)
	if !attempt.Delivered() {
		t.Errorf("without verification: got %+v", attempt)
	}
}

func TestTestAndResend(t *testing.T) {
	w := newWorld(t)
	rec := newReceiver(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	hook := w.hook(rec.URL)
	worker := w.worker()
	for _, kind := range tidelock.HookKinds {
		if _, err := worker.Test(t.Context(), w.root, w.project, hook.ID, kind); tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("%s in an empty project: got %v, want invalid", kind, err)
		}
	}
	w.pushes("main", 1)
	attempt, err := worker.Test(t.Context(), w.root, w.project, hook.ID, tidelock.HookPush)
	must(t, err)
	if attempt.Status != http.StatusTeapot {
		t.Errorf("got %+v, want the receiver's answer", attempt)
	}
	d := w.deliveries(hook.ID)
	if len(d) != 1 || !d[0].Test || d[0].State != tidelock.DeliveryFailed {
		t.Fatalf("got %+v, want one failed test", d)
	}
	attempt, err = worker.Resend(t.Context(), w.root, w.project, hook.ID, d[0].ID)
	must(t, err)
	if !attempt.Delivered() {
		t.Errorf("sent again: got %+v", attempt)
	}
	calls := rec.received()
	if calls[0].header.Get("Idempotency-Key") != calls[1].header.Get("Idempotency-Key") || string(calls[0].body) != string(calls[1].body) {
		t.Error("what was sent again was not the same")
	}
	other := w.hook(rec.URL)
	if _, err := worker.Resend(t.Context(), w.root, w.project, other.ID, d[0].ID); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("another hook's delivery: got %v, want not found", err)
	}
	stranger, err := w.CreateUser(t.Context(), w.root, forge.NewUser{Username: "stranger"})
	must(t, err)
	by := forge.Principal{User: &stranger}
	if _, err := worker.Test(t.Context(), by, w.project, hook.ID, tidelock.HookPush); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("a test by a stranger: got %v, want not found", err)
	}
	if _, err := worker.Resend(t.Context(), by, w.project, hook.ID, d[0].ID); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("a repetition by a stranger: got %v, want not found", err)
	}
}
