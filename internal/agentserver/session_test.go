package agentserver_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/tunnel"
)

func TestRefusedConnections(t *testing.T) {
	w := newWorld(t)
	r := w.register("a")
	revoked, secret := w.token(r)
	check(t, w.RevokeAgentToken(t.Context(), w.root, r.project, r.ID, revoked.ID))
	for _, test := range []struct {
		name, method, path, auth string
		status                   int
		text                     string
	}{
		{"no token", "GET", "/-/kubernetes-agent/", "", 401, "no agent token was given"},
		{"wrong scheme", "GET", "/-/kubernetes-agent/", "Basic " + r.secret.Reveal(), 401, "no agent token was given"},
		{"unknown token", "GET", "/-/kubernetes-agent/", "Bearer glagent-unknown", 401, "not valid"},
		{"another kind of token", "GET", "/-/kubernetes-agent/", "Bearer glpat-whatever", 401, "not valid"},
		{"revoked token", "GET", "/-/kubernetes-agent/", "Bearer " + secret.Reveal(), 401, "not valid"},
		{"no slash", "GET", "/-/kubernetes-agent", "Bearer " + r.secret.Reveal(), 404, "agents connect at /-/kubernetes-agent/"},
		{"below", "GET", "/-/kubernetes-agent/x", "Bearer " + r.secret.Reveal(), 404, "agents connect at /-/kubernetes-agent/"},
		{"method", "POST", "/-/kubernetes-agent/", "Bearer " + r.secret.Reveal(), 405, "agents connect by a WebSocket"},
		{"no WebSocket", "GET", "/-/kubernetes-agent/", "Bearer " + r.secret.Reveal(), 426, "WebSocket"},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), test.method, w.front.URL+test.path, nil)
			check(t, err)
			if test.auth != "" {
				req.Header.Set("Authorization", test.auth)
			}
			resp, err := w.front.Client().Do(req)
			check(t, err)
			defer resp.Body.Close()
			body := make([]byte, 1024)
			n, _ := resp.Body.Read(body)
			if resp.StatusCode != test.status || !strings.Contains(string(body[:n]), test.text) {
				t.Errorf("got %s and %q", resp.Status, body[:n])
			}
		})
	}
	if w.logged(r.secret.Reveal()) || w.logged(secret.Reveal()) {
		t.Error("the log has a token")
	}
	w.connect(r, "one") // the good one still works
}

func TestATokenConnectsTooOften(t *testing.T) {
	w := newWorld(t)
	r, other := w.register("a"), w.register("b")
	var refused *tunnel.RefusedError
	for range 30 {
		s, err := w.dial(r.secret)
		if err != nil {
			refused, _ = errors.AsType[*tunnel.RefusedError](err)
			break
		}
		s.Close("again")
	}
	if refused == nil || refused.StatusCode != http.StatusTooManyRequests || refused.RetryAfter <= 0 {
		t.Errorf("got %+v, want 429 with Retry-After", refused)
	}
	w.connect(other, "one") // another token is not affected
}

func TestNotRunning(t *testing.T) {
	w := newWorld(t)
	r := w.register("a")
	w.stop()
	_, err := w.dial(r.secret)
	if tidelock.KindOf(err) != tidelock.Unavailable {
		t.Errorf("got %v, want unavailable", err)
	}
}

func TestRegister(t *testing.T) {
	w := newWorld(t)
	r := w.register("a")
	s, err := w.dial(r.secret)
	check(t, err)
	t.Cleanup(func() { s.Close("test over") })
	c := w.over(s)

	// First things first.
	stream, err := c.configs.Watch(t.Context(), &agentrpc.WatchRequest{})
	check(t, err)
	if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeFailedPrecondition {
		t.Errorf("watch before register: %v", stream.Err())
	}
	stream.Close()
	if code := c.announceSilently().ends(); code != connect.CodeFailedPrecondition {
		t.Errorf("announce before register: %v", code)
	}
	for _, bad := range []string{"", "two\nlines", strings.Repeat("x", 300)} {
		if _, err := c.session.Register(t.Context(), &agentrpc.RegisterRequest{Instance: bad}); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("instance %q: %v", bad, err)
		}
	}

	got, err := c.session.Register(t.Context(), &agentrpc.RegisterRequest{
		Instance: "one", Version: "v1\n" + strings.Repeat("x", 1000), Commit: "abc", PodNamespace: "ns", PodName: "pod", KubernetesVersion: "v1.34.4",
	})
	check(t, err)
	if got.GetAgentId() != int64(r.ID) || got.GetAgentName() != "a" || got.GetProjectId() != int64(r.project.ID) ||
		got.GetProjectPath() != "team/config-a" || got.GetServerVersion() != "v-test" || len(got.GetForgeUrls()) != 2 {
		t.Errorf("got %v", got)
	}
	sessions, err := w.AgentSessions(t.Context(), r.ID)
	check(t, err)
	if len(sessions) != 1 || sessions[0].Instance != "one" || sessions[0].Token != r.token.ID || sessions[0].Leader ||
		sessions[0].PodName != "pod" || len(sessions[0].Version) != 253 || sessions[0].ConnectedAt.IsZero() {
		t.Fatalf("got %+v", sessions)
	}
	// It became the leader.
	_, err = c.session.Register(t.Context(), &agentrpc.RegisterRequest{Instance: "one", Leader: true})
	check(t, err)
	sessions, err = w.AgentSessions(t.Context(), r.ID)
	check(t, err)
	if len(sessions) != 1 || !sessions[0].Leader {
		t.Errorf("got %+v", sessions)
	}
	if _, err := c.session.Register(t.Context(), &agentrpc.RegisterRequest{Instance: "other"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("another instance in one session: %v", err)
	}
	s.Close("bye")
	eventually(t, "its presence to end", func() bool {
		sessions, err := w.AgentSessions(t.Context(), r.ID)
		return err == nil && len(sessions) == 0
	})
}

func TestPresenceOfReplicas(t *testing.T) {
	w := newWorldWith(t, agentserver.Config{PresenceEvery: 20 * time.Millisecond})
	r := w.register("a")
	first, second := w.connect(r, "one"), w.connect(r, "two")
	present := func() (instances []string) {
		sessions, err := w.AgentSessions(t.Context(), r.ID)
		check(t, err)
		for _, s := range sessions {
			instances = append(instances, s.Instance)
		}
		return instances
	}
	if got := fmt.Sprint(present()); got != "[one two]" {
		t.Errorf("got %s", got)
	}
	// The same process is back before its old connection was missed.
	again := w.connect(r, "one")
	<-first.tunnel.Done()
	if e, ok := errors.AsType[*tunnel.CloseError](first.tunnel.Err()); !ok || !strings.Contains(e.Reason, "same instance") {
		t.Errorf("the old connection ended with %v", first.tunnel.Err())
	}
	eventually(t, "presence to be repeated", func() bool {
		sessions, err := w.AgentSessions(t.Context(), r.ID)
		check(t, err)
		return len(sessions) == 2 && sessions[0].LastSeen.After(sessions[0].ConnectedAt)
	})
	if again.tunnel.Err() != nil || second.tunnel.Err() != nil {
		t.Errorf("ended: %v, %v", again.tunnel.Err(), second.tunnel.Err())
	}
	w.stop()
	if got := present(); len(got) != 0 {
		t.Errorf("after the server stopped: %v", got)
	}
}

func TestUnregisteredSessionIsClosed(t *testing.T) {
	w := newWorldWith(t, agentserver.Config{RegisterLimit: 20 * time.Millisecond})
	s, err := w.dial(w.register("a").secret)
	check(t, err)
	t.Cleanup(func() { s.Close("test over") })
	<-s.Done()
	if e, ok := errors.AsType[*tunnel.CloseError](s.Err()); !ok || e.Reason != "the agent did not register" {
		t.Errorf("ended with %v", s.Err())
	}
}

func TestRevocationEndsSessions(t *testing.T) {
	// closed waits for the agent's end of the session.
	closed := func(t *testing.T, s *tunnel.Session) {
		t.Helper()
		begin := time.Now()
		select {
		case <-s.Done():
		case <-time.After(deadline):
			t.Fatalf("not closed within %v", deadline)
		}
		if e, ok := errors.AsType[*tunnel.CloseError](s.Err()); !ok || e.Reason != "the token was revoked" {
			t.Errorf("ended with %v", s.Err())
		}
		t.Logf("closed after %v", time.Since(begin))
	}
	t.Run("token revoked", func(t *testing.T) {
		w := newWorld(t)
		r := w.register("a")
		_, other := w.token(r)
		one := w.connect(r, "one")
		r.secret = other
		two := w.connect(r, "two")
		check(t, w.RevokeAgentToken(t.Context(), w.root, r.project, r.ID, r.token.ID))
		closed(t, one.tunnel)
		if two.tunnel.Err() != nil {
			t.Errorf("the session of the other token ended: %v", two.tunnel.Err())
		}
	})
	t.Run("unheard", func(t *testing.T) {
		w := newWorld(t)
		r := w.register("a")
		one := w.connect(r, "one")
		check(t, w.faults.Store.RevokeAgentToken(t.Context(), r.token.ID)) // no event
		closed(t, one.tunnel)
	})
	t.Run("agent deleted", func(t *testing.T) {
		w := newWorld(t)
		r := w.register("a")
		one := w.connect(r, "one")
		check(t, w.DeleteAgent(t.Context(), w.root, r.project, r.ID))
		closed(t, one.tunnel)
	})
	t.Run("project deleted", func(t *testing.T) {
		w := newWorld(t)
		r := w.register("a")
		one := w.connect(r, "one")
		check(t, w.DeleteProject(t.Context(), w.root, fmt.Sprint(r.project.ID)))
		closed(t, one.tunnel)
	})
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	a := w.connect(r, "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	m := a.wants(siteID, w.push(site, "main"))
	w.awaitState(r.ID, siteID, 1, tidelock.Sent)
	value := func(name string) float64 {
		t.Helper()
		families, err := w.metrics.Gather()
		check(t, err)
		for _, f := range families {
			if f.GetName() == "tidelock_agentserver_"+name {
				return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
			}
		}
		t.Fatalf("no metric %s", name)
		return 0
	}
	if value("oldest_undelivered_announcement_seconds") <= 0 || value("oldest_unconverged_announcement_seconds") <= 0 {
		t.Error("an undelivered announcement has no age")
	}
	a.delivered(m)
	w.awaitState(r.ID, siteID, 1, tidelock.Delivered)
	if value("oldest_undelivered_announcement_seconds") != 0 || value("oldest_unconverged_announcement_seconds") <= 0 {
		t.Error("a delivered announcement has the wrong age")
	}
	a.progress(&agentrpc.Progress{SourceId: siteID, Number: 1, State: agentrpc.Progress_STATE_CONVERGED})
	w.awaitState(r.ID, siteID, 1, tidelock.Converged)
	for name, want := range map[string]float64{
		"oldest_unconverged_announcement_seconds": 0, "agents": 1, "sessions": 1, "announcement_streams": 1, "sources": 1,
		"announcements_sent_total": 1, "announcements_delivered_total": 1, "announcements_converged_total": 1, "records_dropped_total": 0,
	} {
		if got := value(name); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestHostileAgent(t *testing.T) {
	w := newWorld(t)
	site, secret := w.project("site", tidelock.Public), w.project("secret", tidelock.Private)
	r := w.register("evil")
	c := w.connect(r, "one")
	begin := func() *conversation {
		t.Helper()
		a := c.announce(source(siteID, site), source("GitRepository/x/secret", secret))
		for range 2 {
			a.resolution()
		}
		return a
	}
	t.Run("changes before the set", func(t *testing.T) {
		a := c.announceSilently()
		a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{source(siteID, site)}})
		if code := a.ends(); code != connect.CodeInvalidArgument {
			t.Errorf("got %v", code)
		}
	})
	t.Run("too many sources", func(t *testing.T) {
		a := c.announceSilently()
		var set []*agentrpc.Source
		for i := range 25_000 {
			set = append(set, &agentrpc.Source{Id: fmt.Sprintf("GitRepository/x/s%d", i), Url: base + "/a/b"})
		}
		a.say(&agentrpc.SourceChange{Complete: true, Upserts: set})
		if code := a.ends(); code != connect.CodeResourceExhausted {
			t.Errorf("got %v", code)
		}
	})
	t.Run("a message over the limit", func(t *testing.T) {
		a := c.announceSilently()
		var set []*agentrpc.Source
		for i := range 100_000 {
			set = append(set, &agentrpc.Source{Id: fmt.Sprintf("GitRepository/%s/s%d", strings.Repeat("n", 200), i)})
		}
		a.stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Sources{
			Sources: &agentrpc.SourceChange{Complete: true, Upserts: set},
		}})
		if code := a.ends(); code != connect.CodeResourceExhausted {
			t.Errorf("got %v", code)
		}
	})
	t.Run("impossible sources", func(t *testing.T) {
		a := begin()
		for _, bad := range []*agentrpc.Source{
			{Id: ""}, {Id: "site"}, {Id: "GitRepository//x"}, {Id: "GitRepository/x/y/z"}, {Id: "GitRepository/x/y\nz"},
			{Id: "GitRepository/x/" + strings.Repeat("y", 1000)},
			{Id: "GitRepository/x/y", Url: strings.Repeat("u", 1<<20)},
			{Id: "GitRepository/x/y", Ref: &agentrpc.RefSpec{Branch: strings.Repeat("b", 5000)}},
			{Id: "GitRepository/x/y", LastNumber: -1},
			{Id: "GitRepository/x/y", LastNumber: 1<<63 - 1},
			{Id: "GitRepository/x/y", LastNumber: 1, LastCommit: "no commit"},
		} {
			a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{bad}})
		}
		a.quiet()
		if !w.logged("agent's message refused") {
			t.Error("nothing was logged")
		}
	})
	t.Run("progress of what was never announced", func(t *testing.T) {
		a := begin()
		for _, bad := range []*agentrpc.Progress{
			{SourceId: "GitRepository/x/unknown", Number: 1, State: agentrpc.Progress_STATE_CONVERGED},
			{SourceId: siteID, Number: 1, State: agentrpc.Progress_STATE_CONVERGED},
			{SourceId: siteID, Number: 1 << 62, State: agentrpc.Progress_STATE_CONVERGED},
			{SourceId: siteID, Number: 0, State: agentrpc.Progress_STATE_CONVERGED},
			{SourceId: siteID, Number: -5, State: agentrpc.Progress_STATE_CONVERGED},
			{SourceId: "GitRepository/x/secret", Number: 1, State: agentrpc.Progress_STATE_CONVERGED},
			{SourceId: strings.Repeat("x", 1<<20), Number: 1},
		} {
			a.progress(bad)
		}
		a.quiet()
		list, err := w.LatestAnnouncements(t.Context(), r.ID)
		check(t, err)
		for _, l := range list {
			if l.Source != "GitRepository/test/witness" {
				t.Errorf("recorded %+v", l)
			}
		}
	})
	t.Run("numbers of its own", func(t *testing.T) {
		// It may lie about what it had, but only harms itself, and never
		// writes of a project it may not be told of.
		forged := source("GitRepository/x/secret", secret)
		forged.LastNumber, forged.LastCommit = 7, strings.Repeat("a", 40)
		a := c.announce(forged)
		a.served(forged.GetId(), 0)
		a.progress(&agentrpc.Progress{SourceId: forged.GetId(), Number: 7, State: agentrpc.Progress_STATE_CONVERGED})
		a.quiet()
		if got := w.latest(r.ID, forged.GetId()); got.Number != 0 {
			t.Errorf("recorded %+v", got)
		}
	})
	t.Run("a huge message and wild spans", func(t *testing.T) {
		a := begin()
		commit := w.push(site, "main")
		m := a.wants(siteID, commit)
		p := &agentrpc.Progress{SourceId: siteID, Number: m.GetNumber(), State: agentrpc.Progress_STATE_FAILED, Message: strings.Repeat("\xe2\x82\xac", 1<<18), Attempts: -1}
		p.Called = wild(-1 << 62)
		p.Answered = wild(1 << 62)
		a.progress(p)
		got := w.awaitState(r.ID, siteID, m.GetNumber(), tidelock.Failed)
		if len(got.Message) > 1100 || got.Attempts != 0 || got.CalledAt != got.AnnouncedAt || got.AnsweredAt.Sub(got.AnnouncedAt) > 31*24*time.Hour {
			t.Errorf("recorded a message of %d bytes, %d attempts, %v, %v", len(got.Message), got.Attempts, got.CalledAt, got.AnsweredAt)
		}
		// The state of a number that was never announced, over and over.
		for range 200 {
			if a.stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Progress{
				Progress: &agentrpc.Progress{SourceId: siteID, Number: 99, State: agentrpc.Progress_STATE_HANDLED},
			}}) != nil {
				break
			}
		}
		if code := a.ends(); code != connect.CodeInvalidArgument {
			t.Errorf("got %v", code)
		}
	})
	// Another agent never noticed.
	b := w.connect(w.register("good"), "one").announce(source(siteID, site))
	b.served(siteID, site.ID)
	b.announcement()
	b.wants(siteID, w.push(site, "main"))
}

// TestSlowAgentDelaysNobodyElse has an agent that opens a stream, asks for
// much and never reads.
func TestSlowAgentDelaysNobodyElse(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	slow := w.connect(w.register("slow"), "one")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := slow.sources.Announce(ctx)
	check(t, err)
	var set []*agentrpc.Source
	for i := range 10_000 {
		set = append(set, source(fmt.Sprintf("GitRepository/%s/s%d", strings.Repeat("n", 500), i), site))
	}
	check(t, stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Sources{
		Sources: &agentrpc.SourceChange{Complete: true, Upserts: set},
	}}))

	quick := w.connect(w.register("quick"), "one").announce(source(siteID, site))
	quick.served(siteID, site.ID)
	for range 5 {
		quick.wants(siteID, w.push(site, "main"))
	}
	slow.tunnel.Close("had enough")
}

func wild(seconds int64) *durationpb.Duration { return &durationpb.Duration{Seconds: seconds} }

func TestNewRefusesBadConfig(t *testing.T) {
	if _, err := agentserver.New(agentserver.Config{}); err == nil {
		t.Error("accepted nothing")
	}
	w := newWorld(t)
	c := w.config
	c.ForgeURLs = []string{"not a URL"}
	if _, err := agentserver.New(c); err == nil {
		t.Error("accepted a bad URL")
	}
}
