package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/tunnel"
)

// sees TOKEN-FILE NAME COMMIT STATE [MESSAGE] is an agent that connects, tells
// how Kustomization/flux-system/NAME is with a commit of the GitRepository of
// that name, which it told of before, and leaves. STATE is progressing, ready
// or failed.
func seesCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 || len(args) > 5 {
		ts.Fatalf("usage: sees token-file name commit state [message]")
	}
	states := map[string]agentrpc.Observation_ObservedState{
		"progressing": agentrpc.Observation_OBSERVED_STATE_PROGRESSING,
		"ready":       agentrpc.Observation_OBSERVED_STATE_READY,
		"failed":      agentrpc.Observation_OBSERVED_STATE_FAILED,
	}
	state, ok := states[args[3]]
	if !ok {
		ts.Fatalf("there is no state %q", args[3])
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ts.ReadFile(ts.Getenv("TIDELOCK_CA_FILE"))))
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	session, err := tunnel.Dial(ctx, tunnel.DialConfig{
		URL:    "wss://" + ts.Getenv("HOST") + agentserver.Path,
		Header: http.Header{"Authorization": {"Bearer " + strings.TrimSpace(ts.ReadFile(args[0]))}},
		TLS:    &tls.Config{RootCAs: pool},
	})
	ts.Check(err)
	defer session.Close("done")
	_, err = agentrpc.NewSessionServiceClient(session.Client(), "http://forge").Register(ctx, &agentrpc.RegisterRequest{Instance: "script"})
	ts.Check(err)
	stream, err := agentrpc.NewObservationServiceClient(session.Client(), "http://forge").Observe(ctx)
	ts.Check(err)
	source, revision := "GitRepository/flux-system/"+args[1], "main@sha1:"+args[2]
	applier := &agentrpc.Observation{
		Object: "Kustomization/flux-system/" + args[1], Uid: args[1], State: state, Source: source, Namespace: "apps", Attempted: revision,
	}
	switch args[3] {
	case "ready":
		applier.Revision = revision
	case "failed":
		applier.Reason = "ReconciliationFailed"
	}
	if len(args) == 5 {
		applier.Message = args[4]
	}
	applier.Outcomes = []*agentrpc.Outcome{{Revision: revision, State: state, Reason: applier.Reason, Message: applier.Message}}
	ts.Check(stream.Send(&agentrpc.ObserveRequest{Begin: true, End: true, Upserts: []*agentrpc.Observation{
		{Object: source, Uid: args[1], State: agentrpc.Observation_OBSERVED_STATE_READY, Revision: revision}, applier,
	}}))
	_, err = stream.CloseAndReceive()
	ts.Check(err)
}
