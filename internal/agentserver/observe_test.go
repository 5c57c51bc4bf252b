package agentserver_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
)

const appsID = "Kustomization/flux-system/apps"

// An observation stream, as an agent has it.
type observing struct {
	t      *testing.T
	stream *connect.ClientStreamForClientSimple[agentrpc.ObserveRequest, agentrpc.ObserveResponse]
}

func (c *client) observe() *observing {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c.t.Cleanup(cancel)
	stream, err := agentrpc.NewObservationServiceClient(c.tunnel.Client(), "http://forge").Observe(ctx)
	check(c.t, err)
	return &observing{c.t, stream}
}

func (o *observing) say(m *agentrpc.ObserveRequest) {
	o.t.Helper()
	check(o.t, o.stream.Send(m))
}

// set tells of a whole set.
func (o *observing) set(upserts ...*agentrpc.Observation) *observing {
	o.t.Helper()
	o.say(&agentrpc.ObserveRequest{Begin: true, End: true, Upserts: upserts})
	return o
}

// ends goes on with a message until the stream is ended by the server, and
// returns with which code.
func (o *observing) ends(m *agentrpc.ObserveRequest) connect.Code {
	o.t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if o.stream.Send(m) != nil {
			_, err := o.stream.CloseAndReceive()
			return connect.CodeOf(err)
		}
	}
	o.t.Fatalf("the stream did not end within %v", deadline)
	return 0
}

func kustomization(id string) *agentrpc.Observation {
	return &agentrpc.Observation{Object: id, Uid: "uid-" + id, Source: siteID, State: agentrpc.Observation_OBSERVED_STATE_READY}
}

func at(commit tidelock.CommitID) string { return "main@sha1:" + string(commit) }

// observed reads what is kept of an object; the zero value for nothing.
func (w *world) observed(agent tidelock.AgentID, id string) tidelock.Observation {
	w.t.Helper()
	list, err := w.ObservationsOf(w.t.Context(), tidelock.ObservationFilter{Agent: agent, Objects: []tidelock.ObjectID{tidelock.ObjectID(id)}})
	check(w.t, err)
	if len(list) == 0 {
		return tidelock.Observation{}
	}
	return list[0]
}

func (w *world) rollouts(project tidelock.Project) []tidelock.Rollout {
	w.t.Helper()
	list, _, err := w.Rollouts(w.t.Context(), w.root, project, tidelock.RolloutFilter{}, tidelock.Page{})
	check(w.t, err)
	return list
}

// served opens an announcement stream with the source of a project's branch.
func (w *world) served(c *client, r registration, project tidelock.Project) {
	w.t.Helper()
	c.announce(source(siteID, project))
	eventually(w.t, "the source to be known", func() bool { return w.shown(r.ID, siteID).Project == project.ID })
	if got := w.shown(r.ID, siteID).Spec; got != (tidelock.RefSpec{Branch: "main"}) {
		w.t.Fatalf("the source is said to follow %+v", got)
	}
}

func TestObserve(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	head := w.push(site, "main")
	r := w.register("a")
	c := w.connect(r, "one")
	w.served(c, r, site)

	before := time.Now()
	o := c.observe()
	o.say(&agentrpc.ObserveRequest{Begin: true, Upserts: []*agentrpc.Observation{
		{Object: siteID, State: agentrpc.Observation_OBSERVED_STATE_READY, Revision: at(head), Interval: durationpb.New(time.Minute)},
	}})
	full := &agentrpc.Observation{
		Object: appsID, Uid: "u1", Source: siteID, State: agentrpc.Observation_OBSERVED_STATE_READY, Reason: "ReconciliationSucceeded",
		Message: "Applied", Revision: at(head), Attempted: at(head), Path: "./apps", Namespace: "shop", Environment: "production",
		DependsOn: []string{"Kustomization/flux-system/crds", "nonsense"}, Timeout: durationpb.New(time.Minute), Interval: durationpb.New(time.Hour),
		Health: agentrpc.Observation_HEALTH_HEALTHY, Objects: 7, Requested: true, Since: durationpb.New(time.Hour),
		Unhealthy: []*agentrpc.ObjectHealth{{Kind: "apps/Deployment", Namespace: "shop", Name: "web", Health: agentrpc.Observation_HEALTH_FAILED, Pod: "web-1"}},
		Outcomes: []*agentrpc.Outcome{{
			Revision: at(head), State: agentrpc.Observation_OBSERVED_STATE_READY, Health: agentrpc.Observation_HEALTH_HEALTHY,
			Attempted: durationpb.New(3 * time.Second), Applied: durationpb.New(2 * time.Second), Healthy: durationpb.New(time.Second),
		}},
	}
	o.say(&agentrpc.ObserveRequest{End: true, Upserts: []*agentrpc.Observation{full}})
	eventually(t, "the commit to be live", func() bool {
		list := w.rollouts(site)
		return len(list) == 1 && list[0].State == tidelock.RolloutSuccess
	})
	got := w.observed(r.ID, appsID)
	age := before.Sub(got.Since)
	if got.Project != site.ID || got.Message != "Applied" || got.Environment != "production" || len(got.DependsOn) != 1 || got.Timeout != time.Minute ||
		got.Objects != 7 || len(got.Unhealthy) != 1 || got.Unhealthy[0].Pod != "web-1" || !got.Requested || age < 0 || age > time.Hour {
		t.Errorf("observed %+v", got)
	}
	rollout := w.rollouts(site)[0]
	if rollout.Commit != head || rollout.Push == 0 || rollout.AgentName != "a" || rollout.JobName() != "flux/a/flux-system/apps" ||
		!rollout.RunningAt.Before(rollout.AppliedAt) || !rollout.AppliedAt.Before(rollout.HealthyAt) || rollout.HealthyAt.After(time.Now()) {
		t.Errorf("the rollout is %+v", rollout)
	}

	o.say(&agentrpc.ObserveRequest{Removals: []string{appsID}})
	eventually(t, "the removed one to be forgotten", func() bool { return w.observed(r.ID, appsID).Object == "" })
	// A set without an object does the same, also of a stream that comes later.
	o.say(&agentrpc.ObserveRequest{Upserts: []*agentrpc.Observation{full}})
	eventually(t, "it to be seen again", func() bool { return w.observed(r.ID, appsID).Object != "" })
	second := c.observe().set(kustomization("Kustomization/flux-system/other"))
	eventually(t, "the one that is not in the set to be forgotten", func() bool {
		return w.observed(r.ID, appsID).Object == "" && w.observed(r.ID, "Kustomization/flux-system/other").Object != ""
	})
	if code := o.ends(&agentrpc.ObserveRequest{}); code != connect.CodeAborted {
		t.Errorf("the older stream ended with %v", code)
	}
	// The newer one goes on.
	second.say(&agentrpc.ObserveRequest{Upserts: []*agentrpc.Observation{full}})
	eventually(t, "the newer stream to be heard", func() bool { return w.observed(r.ID, appsID).Object != "" })
}

// TestObserveClocks takes only spans, and none that cannot be.
func TestObserveClocks(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	head := w.push(site, "main")
	r := w.register("a")
	c := w.connect(r, "one")
	w.served(c, r, site)
	for i, span := range []time.Duration{-10 * time.Minute, 10 * time.Minute, -1 << 62, 1 << 62, 0} {
		o := kustomization(fmt.Sprintf("Kustomization/clock/c%d", i))
		o.Revision, o.Attempted, o.Since = at(head), at(head), durationpb.New(span)
		o.Outcomes = []*agentrpc.Outcome{{
			Revision: at(head), State: agentrpc.Observation_OBSERVED_STATE_READY, Attempted: durationpb.New(span), Applied: durationpb.New(span),
		}}
		c.observe().set(o)
		eventually(t, "the commit to be live", func() bool {
			rollouts, _, err := w.Rollouts(t.Context(), w.root, site, tidelock.RolloutFilter{Applier: tidelock.ObjectID(o.GetObject())}, tidelock.Page{})
			check(t, err)
			return len(rollouts) == 1 && rollouts[0].State == tidelock.RolloutSuccess && !rollouts[0].FinishedAt.After(time.Now()) &&
				!rollouts[0].AppliedAt.After(time.Now())
		})
		if since := w.observed(r.ID, o.GetObject()).Since; since.After(time.Now()) || time.Since(since) > 11*366*24*time.Hour {
			t.Errorf("with the span %v it is so since %v", span, since)
		}
	}
}

// TestObserveForeign checks that an agent moves nothing of projects that it may
// not be told of, whatever it says.
func TestObserveForeign(t *testing.T) {
	w := newWorld(t)
	site, secret := w.project("site", tidelock.Public), w.project("secret", tidelock.Private)
	head, hidden := w.push(site, "main"), w.push(secret, "main")
	r := w.register("a")
	c := w.connect(r, "one")
	const secretID = "GitRepository/flux-system/secret"
	c.announce(source(siteID, site), source(secretID, secret))
	eventually(t, "the sources to be known", func() bool { return w.shown(r.ID, siteID).Project == site.ID && w.shown(r.ID, secretID).Source != "" })

	claim := func(id, source string, commit tidelock.CommitID) *agentrpc.Observation {
		o := kustomization(id)
		o.Source, o.Revision, o.Attempted = source, at(commit), at(commit)
		return o
	}
	o := c.observe().set(
		claim("Kustomization/x/of-secret", secretID, hidden),           // not served
		claim("Kustomization/x/unknown", "GitRepository/x/none", head), // no source of its
		claim("Kustomization/x/commit", siteID, hidden),                // a commit of another project
		claim("Kustomization/x/honest", siteID, head),
		&agentrpc.Observation{Object: secretID, Revision: at(hidden), State: agentrpc.Observation_OBSERVED_STATE_READY},
	)
	eventually(t, "the honest one to be live", func() bool {
		return len(w.rollouts(site)) > 0 && w.observed(r.ID, "Kustomization/x/honest").Object != ""
	})
	for _, id := range []string{"Kustomization/x/of-secret", "Kustomization/x/unknown", secretID} {
		if p := w.observed(r.ID, id).Project; p != 0 {
			t.Errorf("%s is said to be of project %d", id, p)
		}
	}
	for _, rollout := range w.rollouts(site) {
		if rollout.Commit != head {
			t.Errorf("there is a rollout of %s: %+v", rollout.Commit, rollout)
		}
	}
	if list := w.rollouts(secret); len(list) != 0 {
		t.Errorf("the secret project has rollouts: %+v", list)
	}

	// Granted, it counts; when that is over, it is not known how it went on.
	_, err := w.GrantAgent(t.Context(), w.root, secret, r.ID)
	check(t, err)
	eventually(t, "the source to be served", func() bool { return w.shown(r.ID, secretID).Project == secret.ID })
	o.say(&agentrpc.ObserveRequest{Upserts: []*agentrpc.Observation{
		{Object: "Kustomization/x/of-secret", Source: secretID, Attempted: at(hidden), State: agentrpc.Observation_OBSERVED_STATE_PROGRESSING},
	}})
	eventually(t, "the commit to be on its way", func() bool {
		list := w.rollouts(secret)
		return len(list) == 1 && list[0].State == tidelock.RolloutRunning
	})
	check(t, w.RevokeGrant(t.Context(), w.root, secret, r.ID))
	check(t, w.PlanRollouts(t.Context(), secret.ID))
	if list := w.rollouts(secret); list[0].State != tidelock.RolloutUnknown {
		t.Errorf("without a grant the rollout is %+v", list[0])
	}
}

// TestObserveHostile bounds and cleans what is kept.
func TestObserveHostile(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	head := w.push(site, "main")
	r := w.register("a")
	c := w.connect(r, "one")
	w.served(c, r, site)

	huge := strings.Repeat("x", 400_000)
	evil := "https://u:s3cret@forge.example \x1b[31mred\x1b[0m \u202egnp.exe\x00\r <b>bold</b> \xff" + huge
	o := c.observe()
	o.say(&agentrpc.ObserveRequest{Begin: true, End: true, Upserts: []*agentrpc.Observation{{
		Object: appsID, Uid: strings.ToValidUTF8(evil[:1000], ""), Source: siteID, State: 99, Health: 99, Reason: strings.Repeat("r\n", 1000), Message: strings.ToValidUTF8(evil, ""),
		Revision: huge[:3000], Attempted: at(head), Path: "../../\x1b]0;x\a", Namespace: strings.Repeat("n", 1000), Environment: "a\x00b",
		Objects: -5, Timeout: durationpb.New(-time.Hour), Interval: durationpb.New(1 << 62),
		DependsOn: strings.Split(strings.Repeat(appsID+",", 1000), ","),
	}}})
	eventually(t, "the object to be kept", func() bool { return w.observed(r.ID, appsID).Object != "" })
	got := w.observed(r.ID, appsID)
	if len(got.Message) > 4096 || strings.ContainsAny(got.Message, "\x1b\x00\r\u202e") || !strings.Contains(got.Message, "<b>bold</b>") || strings.Contains(got.Message, "s3cret") ||
		len(got.Reason) > 253 || len(got.Namespace) > 253 || got.Revision != "" || strings.ContainsAny(got.Path+got.Environment, "\x1b\x00\a") ||
		got.Objects != 0 || got.Timeout != 0 || got.Interval > 400*24*time.Hour || len(got.DependsOn) > 32 ||
		got.State != tidelock.ObservedUnknown || got.Health != tidelock.HealthUnknown {
		got.Message = got.Message[:min(len(got.Message), 100)]
		t.Errorf("kept %+v", got)
	}
	for _, rollout := range w.rollouts(site) {
		if len(rollout.Message) > 4096 {
			t.Errorf("a rollout has a message of %d bytes", len(rollout.Message))
		}
	}

	many := make([]*agentrpc.Observation, 0, 2001)
	for i := range cap(many) {
		many = append(many, kustomization(fmt.Sprintf("Kustomization/many/k%d", i)))
	}
	for _, tt := range []struct {
		name  string
		first *agentrpc.ObserveRequest // of a new stream
		then  func(n int) *agentrpc.ObserveRequest
		want  connect.Code
	}{
		{"changes before the whole set", nil, func(int) *agentrpc.ObserveRequest {
			return &agentrpc.ObserveRequest{Upserts: []*agentrpc.Observation{kustomization(appsID)}}
		}, connect.CodeInvalidArgument},
		{"an end without a beginning", &agentrpc.ObserveRequest{Begin: true, End: true}, func(int) *agentrpc.ObserveRequest {
			return &agentrpc.ObserveRequest{End: true}
		}, connect.CodeInvalidArgument},
		{"ids that are none", &agentrpc.ObserveRequest{Begin: true, End: true}, func(int) *agentrpc.ObserveRequest {
			return &agentrpc.ObserveRequest{Upserts: []*agentrpc.Observation{
				kustomization("Kustomization/a/b/c"), kustomization("Kustomization//b"), kustomization("Secret/a/b"), kustomization("Kustomization/a/\x1b"),
				{Object: appsID, Source: "Kustomization/a/b"}, {Object: appsID, Source: "../../etc/passwd"},
			}}
		}, connect.CodeInvalidArgument},
		{"a message of more than a megabyte", nil, func(int) *agentrpc.ObserveRequest {
			return &agentrpc.ObserveRequest{Begin: true, End: true, Upserts: []*agentrpc.Observation{{Object: appsID, Source: siteID, Message: huge + huge + huge}}}
		}, connect.CodeResourceExhausted},
		{"too many objects", &agentrpc.ObserveRequest{Begin: true}, func(n int) *agentrpc.ObserveRequest {
			for i, o := range many {
				o.Object = fmt.Sprintf("Kustomization/many/k%d-%d", n, i)
			}
			return &agentrpc.ObserveRequest{Upserts: many}
		}, connect.CodeResourceExhausted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := c.observe()
			o.t = t
			if tt.first != nil {
				o.say(tt.first)
			}
			for n := 0; ; n++ {
				if o.stream.Send(tt.then(n)) == nil {
					if n > 200_000 {
						t.Fatal("the stream does not end")
					}
					continue
				}
				_, err := o.stream.CloseAndReceive()
				if code := connect.CodeOf(err); code != tt.want {
					t.Errorf("the stream ended with %v, want %v", err, tt.want)
				}
				break
			}
		})
	}
	all, err := w.ObservationsOf(t.Context(), tidelock.ObservationFilter{Agent: r.ID})
	check(t, err)
	if len(all) > 20_000 {
		t.Errorf("%d observations are kept", len(all))
	}
}

// TestObserveThroughFaults keeps the last word on each object, however long the
// store is down.
func TestObserveThroughFaults(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	first := w.push(site, "main")
	r := w.register("a")
	c := w.connect(r, "one")
	w.served(c, r, site)
	o := c.observe().set(kustomization(appsID), kustomization("Kustomization/flux-system/gone"))
	eventually(t, "the set to be kept", func() bool { return w.observed(r.ID, appsID).Object != "" })

	w.faults.failSaving(errors.New("the disk is full"))
	second := w.push(site, "main")
	for _, commit := range []tidelock.CommitID{first, second} {
		now := kustomization(appsID)
		now.Revision, now.Attempted = at(commit), at(commit)
		o.say(&agentrpc.ObserveRequest{Upserts: []*agentrpc.Observation{now}})
	}
	o.say(&agentrpc.ObserveRequest{Removals: []string{"Kustomization/flux-system/gone"}})
	eventually(t, "the fault to be met", func() bool { return w.logged("observations not kept: tried again soon") })
	w.faults.failSaving(nil)
	eventually(t, "the last word to be kept", func() bool {
		return w.observed(r.ID, appsID).Revision == at(second) && w.observed(r.ID, "Kustomization/flux-system/gone").Object == ""
	})
	eventually(t, "the last commit to be live", func() bool {
		newest, _, err := w.Rollouts(t.Context(), w.root, site, tidelock.RolloutFilter{Newest: true, Applier: appsID}, tidelock.Page{})
		check(t, err)
		return len(newest) == 1 && newest[0].Commit == second && newest[0].State == tidelock.RolloutSuccess
	})
}

// TestObserveTakenBack bounds what is to be forgotten while nothing can be
// written, and forgets only what was told.
func TestObserveTakenBack(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	w.push(site, "main")
	r := w.register("a")
	c := w.connect(r, "one")
	w.served(c, r, site)
	o := c.observe().set(kustomization(appsID))
	eventually(t, "the set to be kept", func() bool { return w.observed(r.ID, appsID).Object != "" })

	w.faults.failSaving(errors.New("the disk is full"))
	ids := make([]string, 2000)
	round := func(n int) []*agentrpc.Observation {
		list := make([]*agentrpc.Observation, len(ids))
		for i := range ids {
			ids[i] = fmt.Sprintf("Kustomization/many/k%d-%d", n, i)
			list[i] = kustomization(ids[i])
		}
		return list
	}
	for n := range 15 {
		round(n)
		o.say(&agentrpc.ObserveRequest{Removals: append(ids, "Kustomization/a/\x00")})
	}
	o.say(&agentrpc.ObserveRequest{Upserts: []*agentrpc.Observation{kustomization("Kustomization/flux-system/other")}})
	w.faults.failSaving(nil)
	eventually(t, "the stream to go on", func() bool { return w.observed(r.ID, "Kustomization/flux-system/other").Object != "" })

	w.faults.failSaving(errors.New("the disk is full"))
	defer w.faults.failSaving(nil)
	for n := 0; ; n++ {
		if n > 10_000 {
			t.Fatal("the stream does not end")
		}
		if o.stream.Send(&agentrpc.ObserveRequest{Upserts: round(n)}) == nil && o.stream.Send(&agentrpc.ObserveRequest{Removals: ids}) == nil {
			continue
		}
		_, err := o.stream.CloseAndReceive()
		if code := connect.CodeOf(err); code != connect.CodeResourceExhausted {
			t.Errorf("the stream ended with %v", err)
		}
		break
	}
}
