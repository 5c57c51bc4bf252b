package server_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/servertest"
	"tidelock.dev/internal/tunnel"
)

// dialAgent connects as an agent does, through everything that is in front of
// the agent server.
func dialAgent(t *testing.T, s *servertest.Server, token string) (*tunnel.Session, error) {
	t.Helper()
	transport := s.Client().Transport.(*http.Transport)
	return tunnel.Dial(t.Context(), tunnel.DialConfig{
		URL:    "wss" + strings.TrimPrefix(s.URL, "https") + "/-/kubernetes-agent/",
		Header: http.Header{"Authorization": {"Bearer " + token}},
		TLS:    &tls.Config{RootCAs: transport.TLSClientConfig.RootCAs},
	})
}

func TestAgentConnects(t *testing.T) {
	s := servertest.Start(t)
	infra := s.Project("team/infra", tidelock.Private)
	id, token := infra.Agent("production")

	refused, err := dialAgent(t, s, "glagent-wrong")
	if err == nil {
		refused.Close("test")
	}
	if e, ok := errors.AsType[*tunnel.RefusedError](err); !ok || e.StatusCode != http.StatusUnauthorized {
		t.Errorf("wrong token: got %v, want 401", err)
	}

	session, err := dialAgent(t, s, token)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close("test is over")
	client := agentrpc.NewSessionServiceClient(session.Client(), "http://server")
	answer, err := client.Register(t.Context(), &agentrpc.RegisterRequest{Instance: "one", Version: "v0", Leader: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := answer; got.GetAgentId() != int64(id) || len(got.GetForgeUrls()) == 0 || got.GetForgeUrls()[0] != s.URL {
		t.Errorf("got %v, want agent %d of %s", got, id, s.URL)
	}
	connected := func() bool {
		var status struct{ Connected bool }
		s.Call(s.Token, http.MethodGet, fmt.Sprintf("projects/%d/cluster_agents/%d/status", infra.ID, id), nil, &status)
		return status.Connected
	}
	s.Eventually("the agent to be shown as connected", connected)

	// Stopping ends the connection; it does not wait for agents to leave.
	began := time.Now()
	s.Stop()
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("stopping with an idle agent took %v", took)
	}
	select {
	case <-session.Done():
	case <-time.After(5 * time.Second):
		t.Error("the agent still believes in its connection")
	}
}
