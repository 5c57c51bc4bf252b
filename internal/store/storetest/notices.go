package storetest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidelock.dev"
)

// chat makes an integration that tells everything.
func (w world) chat(project tidelock.ProjectID) tidelock.Integration {
	w.Helper()
	i, err := w.SaveIntegration(w.Context(), tidelock.Integration{
		Project: project, Kind: tidelock.Slack, URL: tidelock.NewSecret("https://chat.example/s3cret"), Pipelines: true, Branches: tidelock.EveryBranch,
	})
	w.ok(err)
	return i
}

// rolled saves the state of a commit in an applier, as its newest.
func (w world) rolled(agent tidelock.Agent, applier string, commit string, state tidelock.RolloutState, message string) {
	w.Helper()
	r := rollout(agent, applier, commit, state, message)
	r.Newest = true
	before, _, err := w.Rollouts(w.Context(), tidelock.RolloutFilter{Agent: agent.ID, Applier: r.Applier, Newest: true}, everything)
	w.ok(err)
	saved := []tidelock.Rollout{r}
	for _, b := range before {
		if b.Newest = false; b.Commit != r.Commit {
			saved = append(saved, b)
		}
	}
	_, err = w.SaveRollouts(w.Context(), saved...)
	w.ok(err)
}

func rollout(agent tidelock.Agent, applier string, commit string, state tidelock.RolloutState, message string) tidelock.Rollout {
	return tidelock.Rollout{
		Agent: agent.ID, Applier: tidelock.ObjectID(applier), Source: "GitRepository/a/b", Project: agent.Project,
		Commit: tidelock.CommitID(commit), Ref: tidelock.BranchRef("main"), Environment: "prod/a", State: state, Reason: "Reason", Message: message,
		UpdatedAt: at(0),
	}
}

func (w world) noticed() string {
	w.Helper()
	notices, err := w.Notices(w.Context(), 0, 100)
	w.ok(err)
	var all []string
	for _, n := range notices {
		all = append(all, fmt.Sprintf("%s %s %s %s", n.Applier, n.Commit, n.State, n.Message))
	}
	return strings.Join(all, ", ")
}

func sealedIntegration(w world, got, want tidelock.Integration) {
	w.Helper()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b tidelock.Secret) bool { return a.Reveal() == b.Reveal() })); diff != "" {
		w.Fatalf("got other than wanted (-want +got):\n%s", diff)
	}
}

var noticeTests = []test{
	{"integrations are kept whole, and changed", func(w world) {
		site := w.site()
		_, err := w.Integration(w.Context(), site.ID, tidelock.Slack)
		w.kind(err, tidelock.NotFound)
		want := tidelock.Integration{
			Project: site.ID, Kind: tidelock.Slack, URL: tidelock.NewSecret("https://chat.example/s3cret"), Username: "Tidelock", Channel: "#a",
			Pipelines: true, PipelineChannel: "#b", DeploymentChannel: "#c", OnlyBroken: true, Branches: tidelock.DefaultOrProtected,
			Unused: []string{"push", "note"}, CreatedAt: start, UpdatedAt: start.Add(time.Second),
		}
		made, err := w.SaveIntegration(w.Context(), want)
		w.ok(err)
		want.ID, want.Hook, want.CreatedAt, want.UpdatedAt = made.ID, made.Hook, at(0), at(time.Second)
		sealedIntegration(w, made, want)

		want.URL, want.Username, want.Channel, want.PipelineChannel, want.Unused = tidelock.NewSecret("http://other.example"), "", "", "", []string{}
		want.Pipelines, want.Deployments, want.OnlyBroken, want.Branches, want.UpdatedAt = false, true, false, tidelock.EveryBranch, at(time.Hour)
		changed, err := w.SaveIntegration(w.Context(), want)
		w.ok(err)
		sealedIntegration(w, changed, want)
		all, err := w.Integrations(w.Context(), site.ID)
		w.ok(err)
		equal(w, len(all), 1)
		sealedIntegration(w, all[0], want)

		_, err = w.SaveIntegration(w.Context(), tidelock.Integration{Project: 999, Kind: tidelock.Slack})
		w.kind(err, tidelock.NotFound)
		w.ok(w.DeleteIntegration(w.Context(), site.ID, tidelock.Slack))
		w.kind(w.DeleteIntegration(w.Context(), site.ID, tidelock.Slack), tidelock.NotFound)
		_, err = w.Hook(w.Context(), made.Hook)
		w.kind(err, tidelock.NotFound)
	}},

	{"integrations are no hooks of the project", func(w world) {
		site := w.site()
		chat := w.chat(site.ID)
		hook := w.hook(site.ID, tidelock.HookPush)
		hooks, total, err := w.Hooks(w.Context(), site.ID, everything)
		w.ok(err)
		equal(w, total, 1)
		equal(w, hooks[0].ID, hook.ID)
		_, err = w.CreateHook(w.Context(), tidelock.Hook{Project: site.ID, URL: "https://ci.example"}, 2)
		w.ok(err)
		w.kind(w.DeleteIntegration(w.Context(), site.ID, ""), tidelock.NotFound)

		called, err := w.Hook(w.Context(), chat.Hook)
		w.ok(err)
		equal(w, called.Integration, tidelock.Slack)
		equal(w, called.URL, chat.URL.Reveal())
		equal(w, called.ShownURL(), "https://chat.example/xxxxx")
		w.push(site.ID, "main=c1")
		w.ok(w.Tell(w.Context(), nil, nil, []tidelock.Delivery{{Hook: chat.Hook, Kind: tidelock.HookSync, UUID: "u", Body: []byte(`{}`), NextAt: at(0)}}))
		deliveries, err := w.ClaimDeliveries(w.Context(), claim(0))
		w.ok(err)
		equal(w, uuids(deliveries), "u")
		w.fail(deliveries[0], time.Hour, func(int) time.Duration { return time.Minute })
		held, err := w.Integration(w.Context(), site.ID, tidelock.Slack)
		w.ok(err)
		equal(w, held.Failures, 1)
		equal(w, held.HeldUntil, at(time.Minute))
		held, err = w.SaveIntegration(w.Context(), held)
		w.ok(err)
		equal(w, held.Failures, 0)
		equal(w, held.HeldUntil, time.Time{})
	}},

	{"notices are written with rollouts, if anybody wants to know", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		w.rolled(agent, "Kustomization/a/x", "c1", tidelock.RolloutFailed, "before")
		equal(w, w.noticed(), "")
		chat := w.chat(site.ID)
		for _, state := range []tidelock.RolloutState{tidelock.RolloutPending, tidelock.RolloutRunning, tidelock.RolloutUnknown, tidelock.RolloutSuperseded} {
			w.rolled(agent, "Kustomization/a/x", "c2", state, "")
		}
		w.rolled(agent, "Kustomization/a/x", "c2", tidelock.RolloutSuccess, "") // nothing was said to have failed
		equal(w, w.noticed(), "")

		w.rolled(agent, "Kustomization/a/y", "c3", tidelock.RolloutFailed, "one")
		w.rolled(agent, "Kustomization/a/y", "c3", tidelock.RolloutFailed, "one")
		w.rolled(agent, "Kustomization/a/y", "c3", tidelock.RolloutFailed, "two")
		w.rolled(agent, "Kustomization/a/y", "c3", tidelock.RolloutFailed, "one")
		_, err := w.SaveRollouts(w.Context(), rollout(agent, "Kustomization/a/y", "c2", tidelock.RolloutSuccess, "")) // an older one
		w.ok(err)
		const failed = "Kustomization/a/y c3 failed one, Kustomization/a/y c3 failed two, Kustomization/a/y c3 failed one"
		equal(w, w.noticed(), failed)
		w.rolled(agent, "Kustomization/a/y", "c4", tidelock.RolloutSuccess, "")
		w.rolled(agent, "Kustomization/a/y", "c4", tidelock.RolloutSuccess, "")
		equal(w, w.noticed(), failed+", Kustomization/a/y c4 success ")
		notices, err := w.Notices(w.Context(), 0, 1)
		w.ok(err)
		want := tidelock.Notice{ // with the environment that its rollout has by now
			ID: notices[0].ID, Project: site.ID, Agent: agent.ID, Applier: "Kustomization/a/y", Commit: "c3", Ref: "refs/heads/main",
			Environment: "prod/a", State: tidelock.RolloutFailed, Reason: "Reason", Message: "one", At: at(0),
		}
		equal(w, notices[0], want)
		rest, err := w.Notices(w.Context(), notices[0].ID, 100)
		w.ok(err)
		equal(w, len(rest), 3)

		// What is not written leaves no notice, and what tells nothing wants none.
		err = w.Atomically(w.Context(), func(ctx context.Context) error {
			if _, err := w.SaveRollouts(ctx, rollout(agent, "Kustomization/a/z", "c5", tidelock.RolloutFailed, "undone")); err != nil {
				return err
			}
			return tidelock.Errorf(tidelock.Conflict, "no")
		})
		w.kind(err, tidelock.Conflict)
		chat.Pipelines = false
		_, err = w.SaveIntegration(w.Context(), chat)
		w.ok(err)
		w.rolled(agent, "Kustomization/a/z", "c5", tidelock.RolloutFailed, "untold")
		equal(w, w.noticed(), failed+", Kustomization/a/y c4 success ")
		w.ok(w.DeleteAgent(w.Context(), agent.ID))
		equal(w, w.noticed(), "")
	}},

	{"are told once", func(w world) {
		site := w.site()
		agent, chat := w.agent(site.ID, "prod"), w.chat(site.ID)
		w.rolled(agent, "Kustomization/a/x", "c1", tidelock.RolloutFailed, "one")
		w.rolled(agent, "Kustomization/a/y", "c1", tidelock.RolloutFailed, "one")
		notices, err := w.Notices(w.Context(), 0, 100)
		w.ok(err)
		ids := []tidelock.NoticeID{notices[0].ID, notices[1].ID}
		told := tidelock.Told{
			Integration: chat.ID, Agent: agent.ID, Applier: "Kustomization/a/x", Commit: "c1", Causes: []string{"one", "two"}, FailedAt: at(0), At: at(time.Second),
		}
		deliveries := []tidelock.Delivery{{Hook: chat.Hook, Kind: tidelock.HookSync, Ref: "slack", UUID: "u1", Body: []byte(`{"text":"x"}`), NextAt: at(0)}}
		w.kind(w.Tell(w.Context(), append(ids, 999), []tidelock.Told{told}, deliveries), tidelock.Conflict)
		equal(w, len(w.told(chat)), 0)
		w.ok(w.Tell(w.Context(), ids, []tidelock.Told{told}, deliveries))
		w.kind(w.Tell(w.Context(), ids, []tidelock.Told{told}, deliveries), tidelock.Conflict)
		equal(w, w.told(chat), []tidelock.Told{told})
		equal(w, w.noticed(), "")
		equal(w, w.claimed(claim(0)), "u1")

		// It is known to fail until it was told that it recovered.
		w.rolled(agent, "Kustomization/a/x", "c2", tidelock.RolloutSuccess, "")
		notices, err = w.Notices(w.Context(), 0, 100)
		w.ok(err)
		equal(w, len(notices), 1)
		told.Commit, told.Causes, told.FailedAt, told.At = "c2", []string{}, time.Time{}, at(time.Minute)
		w.ok(w.Tell(w.Context(), []tidelock.NoticeID{notices[0].ID}, []tidelock.Told{told}, nil))
		equal(w, w.told(chat), []tidelock.Told{told})
		w.rolled(agent, "Kustomization/a/x", "c3", tidelock.RolloutSuccess, "")
		equal(w, w.noticed(), "")

		// What is gone is left out, and takes with it what was told.
		gone := told
		gone.Agent = 999
		w.ok(w.Tell(w.Context(), nil, []tidelock.Told{gone}, []tidelock.Delivery{{Hook: 999, Kind: tidelock.HookSync, UUID: "u2", Body: []byte(`{}`)}}))
		w.ok(w.DeleteIntegration(w.Context(), site.ID, tidelock.Slack))
		equal(w, len(w.told(chat)), 0)
	}},
}

func (w world) told(i tidelock.Integration) []tidelock.Told {
	w.Helper()
	told, err := w.Told(w.Context(), i.ID)
	w.ok(err)
	return told
}
