package main

import (
	"context"
	"crypto/tls"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/tunnel"
)

// A lightAgent speaks an agent's part of the protocol for OCIRepositories in a
// cluster that is not there: what it is told of, it has.
type lightAgent struct {
	t    *testing.T
	dial tunnel.DialConfig

	mu      sync.Mutex
	sources map[string]*agentrpc.Source
	told    map[tidelock.Digest]int
	session *tunnel.Session
	away    bool
	wake    chan struct{} // closed when it is no longer away
}

func sourceIDOf(tag *pushedTag) string {
	return "OCIRepository/test/" + strings.ReplaceAll(tag.image, "/", "-") + "-" + tag.tag
}

// startLightAgent registers an agent and connects, again and again, until the
// test ends.
func startLightAgent(t *testing.T, p *serverProcess, c *connection, group int64, tags []*pushedTag) *lightAgent {
	t.Helper()
	type made struct {
		ID    int64  `json:"id"`
		Token string `json:"token"`
	}
	project, err := c.createProject(t.Context(), group, "agents")
	if err != nil {
		t.Fatal(err)
	}
	agent, err := call[made](t.Context(), c, http.MethodPost, at("projects/%d/cluster_agents", project.ID), map[string]any{"name": "light"})
	if err != nil {
		t.Fatal(err)
	}
	token, err := call[made](t.Context(), c, http.MethodPost, at("projects/%d/cluster_agents/%d/tokens", project.ID, agent.value.ID), map[string]any{"name": "test"})
	if err != nil {
		t.Fatal(err)
	}
	a := &lightAgent{
		t: t, sources: map[string]*agentrpc.Source{}, told: map[tidelock.Digest]int{}, wake: make(chan struct{}),
		dial: tunnel.DialConfig{
			URL:    "wss" + strings.TrimPrefix(p.url, "https") + agentserver.Path,
			Header: http.Header{"Authorization": {"Bearer " + token.value.Token}},
			TLS:    &tls.Config{RootCAs: p.roots},
		},
	}
	close(a.wake)
	for _, tag := range tags {
		id := sourceIDOf(tag)
		a.sources[id] = &agentrpc.Source{
			Id: id, Uid: id, Url: "oci" + strings.TrimPrefix(p.url, "https") + "/" + tag.image, Ref: &agentrpc.RefSpec{Tag: tag.tag},
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return a
}

func (a *lightAgent) run(ctx context.Context) {
	for ctx.Err() == nil {
		a.mu.Lock()
		wake := a.wake
		a.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
		if err := a.listen(ctx); err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond): // the server may be down
		}
	}
}

// listen holds one session until it ends.
func (a *lightAgent) listen(ctx context.Context) error {
	session, err := tunnel.Dial(ctx, a.dial)
	if err != nil {
		return err
	}
	defer session.Close("over")
	a.mu.Lock()
	away := a.away
	a.session = session
	a.mu.Unlock()
	if away {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { session.Close("test over") })
	defer stop()
	client := session.Client()
	if _, err := agentrpc.NewSessionServiceClient(client, "http://forge").Register(ctx, &agentrpc.RegisterRequest{Instance: "light", Leader: true}); err != nil {
		return err
	}
	stream, err := agentrpc.NewAnnouncementServiceClient(client, "http://forge").Announce(ctx)
	if err != nil {
		return err
	}
	if err := say(stream, &agentrpc.SourceChange{Complete: true, Upserts: a.all()}); err != nil {
		return err
	}
	for {
		message, err := stream.Receive()
		if err != nil {
			return err
		}
		announced := message.GetAnnouncement()
		if announced == nil {
			continue
		}
		now := a.take(announced)
		for _, state := range []agentrpc.Progress_State{agentrpc.Progress_STATE_DELIVERED, agentrpc.Progress_STATE_HANDLED} {
			progress := &agentrpc.Progress{SourceId: announced.SourceId, Number: announced.Number, State: state}
			if err := stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Progress{Progress: progress}}); err != nil {
				return err
			}
		}
		if err := say(stream, &agentrpc.SourceChange{Upserts: []*agentrpc.Source{now}}); err != nil {
			return err
		}
	}
}

type announceStream = connect.BidiStreamForClientSimple[agentrpc.AnnounceRequest, agentrpc.AnnounceResponse]

func say(stream *announceStream, m *agentrpc.SourceChange) error {
	return stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Sources{Sources: m}})
}

func (a *lightAgent) all() []*agentrpc.Source {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*agentrpc.Source
	for _, s := range a.sources {
		all = append(all, proto.CloneOf(s))
	}
	return all
}

// take is what Flux does with an announcement: the source has the artifact.
func (a *lightAgent) take(m *agentrpc.Announcement) *agentrpc.Source {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told[tidelock.Digest(m.Digest)]++
	s := a.sources[m.SourceId]
	s.LastNumber, s.LastDigest, s.LastCommit = m.Number, m.Digest, m.Commit
	if s.Revision = ""; m.Digest != "" {
		s.Revision = s.Ref.Tag + "@" + m.Digest
	}
	return proto.CloneOf(s)
}

// cut ends the connection; the agent comes back at once.
func (a *lightAgent) cut() {
	a.mu.Lock()
	session := a.session
	a.mu.Unlock()
	if session != nil {
		session.Close("cut")
	}
}

// leave ends the connection until join.
func (a *lightAgent) leave() {
	a.mu.Lock()
	a.away, a.wake = true, make(chan struct{})
	a.mu.Unlock()
	a.cut()
}

func (a *lightAgent) join() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.away = false
	close(a.wake)
}

// forget is a cluster that begins anew: no source has anything.
func (a *lightAgent) forget() {
	a.mu.Lock()
	for _, s := range a.sources {
		s.Revision, s.LastNumber, s.LastDigest, s.LastCommit = "", 0, "", ""
	}
	a.mu.Unlock()
	a.cut()
}

func (a *lightAgent) follows(tag *pushedTag) bool {
	_, ok := a.sources[sourceIDOf(tag)]
	return ok
}

// has is the digest that a source has.
func (a *lightAgent) has(tag *pushedTag) tidelock.Digest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return tidelock.ParseRevision(tidelock.OCIRepository, a.sources[sourceIDOf(tag)].Revision).Digest
}

// heard is every digest that was announced, and how often.
func (a *lightAgent) heard() map[tidelock.Digest]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	heard := maps.Clone(a.told)
	delete(heard, "") // that a tag is not there
	return heard
}

func (a *lightAgent) count() int {
	n := 0
	for _, times := range a.heard() {
		n += times
	}
	return n
}
