package rollout_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/tunnel"
)

// A cluster is what an agent would see of one: sources that fetch, and appliers
// that apply, in steps that a test asks for.
type cluster struct {
	mu       sync.Mutex
	random   *rand.Rand
	sources  []*source
	appliers []*applier
	changed  map[string]bool
	wake     chan struct{} // holds a token while something changed
}

type source struct {
	id, url string
	head    tidelock.CommitID // of the branch
	fetched tidelock.CommitID
}

type applier struct {
	id       string
	source   *source
	applied  tidelock.CommitID
	state    agentrpc.Observation_ObservedState
	health   agentrpc.Observation_Health
	outcomes []outcome // newest first; the first is of what was attempted last
	history  []outcome // of what is left behind
}

type outcome struct {
	commit             tidelock.CommitID
	state              agentrpc.Observation_ObservedState
	health             agentrpc.Observation_Health
	attempted, applied time.Time
	healthy, failed    time.Time
}

const (
	progressing = agentrpc.Observation_OBSERVED_STATE_PROGRESSING
	ready       = agentrpc.Observation_OBSERVED_STATE_READY
	failed      = agentrpc.Observation_OBSERVED_STATE_FAILED
	healthy     = agentrpc.Observation_HEALTH_HEALTHY
	unsettled   = agentrpc.Observation_HEALTH_PROGRESSING
)

func newCluster(seed uint64) *cluster {
	return &cluster{random: rand.New(rand.NewPCG(seed, 1)), changed: map[string]bool{}, wake: make(chan struct{}, 1)}
}

// follow adds a source of a project's branch main with some appliers.
func (c *cluster) follow(name, url string, appliers int) *source {
	s := &source{id: "GitRepository/flux-system/" + name, url: url}
	c.sources = append(c.sources, s)
	for i := range appliers {
		c.appliers = append(c.appliers, &applier{id: fmt.Sprintf("Kustomization/flux-system/%s-%d", name, i), source: s})
	}
	return s
}

// pushed moves the head that a source sees.
func (c *cluster) pushed(s *source, commit tidelock.CommitID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.head = commit
}

// fails is the fate of a commit in an applier.
func fails(a *applier, commit tidelock.CommitID) bool { return (len(a.id)+int(commit[0]))%5 == 0 }

func (c *cluster) touch(id string) {
	c.changed[id] = true
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// step lets something happen that can, and reports whether there was any such
// thing.
func (c *cluster) step() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.random.Perm(len(c.sources) + len(c.appliers)) {
		if i < len(c.sources) {
			if s := c.sources[i]; s.fetched != s.head {
				s.fetched = s.head
				c.touch(s.id)
				return true
			}
			continue
		}
		if a := c.appliers[i-len(c.sources)]; a.step() {
			c.touch(a.id)
			return true
		}
	}
	return false
}

func (a *applier) step() bool {
	now := time.Now()
	if next := a.source.fetched; next != "" && (len(a.outcomes) == 0 || a.outcomes[0].commit != next) {
		a.state, a.health = progressing, agentrpc.Observation_HEALTH_UNSPECIFIED
		if len(a.outcomes) > 0 {
			a.history = append(a.history, a.outcomes[0])
		}
		a.outcomes = slices.DeleteFunc(a.outcomes, func(o outcome) bool { return o.commit == next })
		a.outcomes = slices.Insert(a.outcomes, 0, outcome{commit: next, state: progressing, attempted: now})
		a.outcomes = a.outcomes[:min(len(a.outcomes), 8)]
		return true
	}
	if len(a.outcomes) == 0 {
		return false
	}
	o := &a.outcomes[0]
	switch {
	case a.state == progressing && fails(a, o.commit):
		a.state, o.state, o.failed = failed, failed, now
	case a.state == progressing:
		a.state, a.health, a.applied = ready, unsettled, o.commit
		o.state, o.health, o.applied = ready, unsettled, now
	case a.state == ready && a.health == unsettled:
		a.health, o.health, o.healthy = healthy, healthy, now
	default:
		return false
	}
	return true
}

// snapshot tells of all objects, or of those that changed since the last one.
func (c *cluster) snapshot(all bool) *agentrpc.ObserveRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	m := &agentrpc.ObserveRequest{Begin: all, End: all}
	for _, s := range c.sources {
		if all || c.changed[s.id] {
			m.Upserts = append(m.Upserts, &agentrpc.Observation{
				Object: s.id, Uid: s.id, State: ready, Revision: revision(s.fetched), Interval: durationpb.New(time.Minute),
			})
		}
	}
	for _, a := range c.appliers {
		if all || c.changed[a.id] {
			m.Upserts = append(m.Upserts, a.observation(now))
		}
	}
	c.changed = map[string]bool{}
	return m
}

func revision(commit tidelock.CommitID) string {
	if commit == "" {
		return ""
	}
	return "main@sha1:" + string(commit)
}

func (a *applier) observation(now time.Time) *agentrpc.Observation {
	o := &agentrpc.Observation{
		Object: a.id, Uid: a.id, State: a.state, Health: a.health, Source: a.source.id, Namespace: "flux-system", Path: "./",
		Revision: revision(a.applied), Interval: durationpb.New(time.Minute), Timeout: durationpb.New(time.Minute), Objects: 3,
	}
	if a.state == failed {
		o.Reason, o.Message = "ReconciliationFailed", "no matches for kind \"Boat\""
	}
	ago := func(t time.Time) *durationpb.Duration {
		if t.IsZero() {
			return nil
		}
		return durationpb.New(now.Sub(t))
	}
	for i, out := range a.outcomes {
		if i == 0 {
			o.Attempted = revision(out.commit)
		}
		o.Outcomes = append(o.Outcomes, &agentrpc.Outcome{
			Revision: revision(out.commit), State: out.state, Health: out.health,
			Attempted: ago(out.attempted), Applied: ago(out.applied), Healthy: ago(out.healthy), Failed: ago(out.failed),
		})
	}
	return o
}

// An agent tells a forge what it sees of a cluster, over the streams that real
// agents use, and connects again whenever it has to.
type agent struct {
	t       *testing.T
	cluster *cluster
	url     string
	token   string
	tls     *tls.Config

	mu     sync.Mutex
	tunnel *tunnel.Session
}

func newAgent(t *testing.T, c *cluster, url, caFile, token string) *agent {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &agent{t: t, cluster: c, url: "wss" + strings.TrimPrefix(url, "https") + "/-/kubernetes-agent/", token: token, tls: &tls.Config{RootCAs: pool}}
}

// run keeps telling until ctx is done.
func (a *agent) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := a.connect(ctx)
		a.t.Logf("the agent's streams ended: %v", err)
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// cut breaks the connection, if there is one.
func (a *agent) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tunnel != nil {
		a.tunnel.Close("cut by the test")
	}
}

func (a *agent) connect(ctx context.Context) error {
	session, err := tunnel.Dial(ctx, tunnel.DialConfig{URL: a.url, Header: http.Header{"Authorization": {"Bearer " + a.token}}, TLS: a.tls})
	if err != nil {
		return err
	}
	defer session.Close("over")
	a.mu.Lock()
	a.tunnel = session
	a.mu.Unlock()
	client := session.Client()
	if _, err := agentrpc.NewSessionServiceClient(client, "http://forge").Register(ctx, &agentrpc.RegisterRequest{Instance: "one", Version: "v-test", Leader: true}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var streams sync.WaitGroup
	defer streams.Wait()
	defer cancel()
	announced := make(chan error, 1)
	streams.Go(func() { announced <- a.announce(ctx, client) })
	observed := make(chan error, 1)
	streams.Go(func() { observed <- a.observe(ctx, client) })
	select {
	case err := <-announced:
		return err
	case err := <-observed:
		return err
	case <-session.Done():
		return session.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// announce tells of the sources and confirms what is announced of them.
func (a *agent) announce(ctx context.Context, client *http.Client) error {
	stream, err := agentrpc.NewAnnouncementServiceClient(client, "http://forge").Announce(ctx)
	if err != nil {
		return err
	}
	set := &agentrpc.SourceChange{Complete: true}
	for _, s := range a.cluster.sources {
		set.Upserts = append(set.Upserts, &agentrpc.Source{Id: s.id, Uid: s.id, Url: s.url, Ref: &agentrpc.RefSpec{Branch: "main"}})
	}
	if err := stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Sources{Sources: set}}); err != nil {
		return err
	}
	for {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		n := m.GetAnnouncement()
		if n == nil {
			continue
		}
		if err := stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Progress{Progress: &agentrpc.Progress{
			SourceId: n.GetSourceId(), Number: n.GetNumber(), State: agentrpc.Progress_STATE_DELIVERED,
		}}}); err != nil {
			return err
		}
	}
}

// observe tells of everything, and then of what changes.
func (a *agent) observe(ctx context.Context, client *http.Client) error {
	stream, err := agentrpc.NewObservationServiceClient(client, "http://forge").Observe(ctx)
	if err != nil {
		return err
	}
	for all := true; ; all = false {
		if err := stream.Send(a.cluster.snapshot(all)); err != nil {
			_, ended := stream.CloseAndReceive()
			return errors.Join(err, ended)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.cluster.wake:
		}
	}
}
