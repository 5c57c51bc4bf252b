package main

import (
	"context"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/types/known/durationpb"

	"tidelock.dev/internal/agentrpc"
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
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	session := connectAgent(ctx, ts, args[0])
	defer session.Close("done")
	stream, err := agentrpc.NewObservationServiceClient(session.Client(), "http://forge").Observe(ctx)
	ts.Check(err)
	source, revision := "GitRepository/flux-system/"+args[1], "main@sha1:"+args[2]
	outcome := &agentrpc.Outcome{Revision: revision, State: state, Attempted: durationpb.New(time.Second)}
	applier := &agentrpc.Observation{
		Object: "Kustomization/flux-system/" + args[1], Uid: args[1], State: state, Source: source, Namespace: "apps", Attempted: revision,
		Outcomes: []*agentrpc.Outcome{outcome},
	}
	switch args[3] {
	case "ready":
		applier.Revision = revision
		applier.Health, outcome.Health = agentrpc.Observation_HEALTH_HEALTHY, agentrpc.Observation_HEALTH_HEALTHY
		outcome.Applied, outcome.Healthy = durationpb.New(time.Second/2), durationpb.New(time.Second/4)
	case "failed":
		applier.Reason, outcome.Reason = "ReconciliationFailed", "ReconciliationFailed"
		outcome.Failed = durationpb.New(time.Second / 4)
	}
	if len(args) == 5 {
		applier.Message, outcome.Message = args[4], args[4]
	}
	ts.Check(stream.Send(&agentrpc.ObserveRequest{Begin: true, End: true, Upserts: []*agentrpc.Observation{
		{Object: source, Uid: args[1], State: agentrpc.Observation_OBSERVED_STATE_READY, Revision: revision}, applier,
	}}))
	_, err = stream.CloseAndReceive()
	ts.Check(err)
}
