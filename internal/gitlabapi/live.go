package gitlabapi

import (
	"fmt"
	"net/http"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// liveRoutes are ours: whether a commit is live, and how it came there.
func (a *API) liveRoutes() []route {
	return []route{
		{get, "/projects/:id/repository/commits/:sha/live", a.showLive},
		{get, "/projects/:id/repository/commits/:sha/timeline", a.showTimeline},
	}
}

// maxWait is for how long a request may wait, in seconds: less than the minute
// after which proxies take a silent connection for dead.
const maxWait = 55

type liveShape struct {
	SHA         tidelock.CommitID  `json:"sha"`
	Environment *string            `json:"environment"` // null for all
	State       forge.LiveState    `json:"state"`
	Message     string             `json:"message"`
	Descendant  *tidelock.CommitID `json:"descendant"` // by which it is live
	Version     string             `json:"version"`
	Rollouts    []rolloutShape     `json:"rollouts"` // one for each applier, worst first
}

// showLive says how a commit stands. With wait it answers only when that is
// not what version says, or after so many seconds.
func (a *API) showLive(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadDelivery)
	if err != nil {
		return err
	}
	environment, seen, wait := r.text("environment"), r.text("version"), r.number("wait")
	if wait < 0 || wait > maxWait {
		r.note("wait", fmt.Sprintf("must be between 0 and %d", maxWait))
	}
	if err := r.err(); err != nil {
		return err
	}
	if wait > 0 {
		release, ok := a.limits.Wait(r.by.Allowance(r.RemoteAddr))
		if !ok {
			wait = 0 // so many wait already that this one has to ask again
		} else {
			defer release()
		}
	}
	live, err := a.forge.AwaitLive(r.ctx(), r.by, project, r.arg("sha"), environment, seen, time.Duration(wait)*time.Second)
	if err != nil {
		return missing("Commit", err)
	}
	return ok(w, liveShape{
		SHA: live.Commit, Environment: orNull(live.Environment), State: live.State, Message: live.Message,
		Descendant: orNull(live.Descendant), Version: live.Version, Rollouts: each(live.Rollouts, shapeRollout),
	})
}

type timelineShape struct {
	ProjectID  tidelock.ProjectID `json:"project_id"`
	SHA        tidelock.CommitID  `json:"sha"`
	Title      *string            `json:"title"`
	Author     *string            `json:"author_name"`
	Carrier    *tidelock.CommitID `json:"carrier"`
	AcceptedAt exact              `json:"accepted_at"`
	WebURL     string             `json:"web_url"`
	Hops       []trunkShape       `json:"hops"`
	Places     []placeShape       `json:"places"`
	MorePlaces int                `json:"more_places"`
	Hidden     bool               `json:"places_hidden"` // from this caller
}

// A hopShape is one step; spans are in seconds, null while it is to come.
type hopShape struct {
	Hop     tidelock.HopKind  `json:"hop"`
	State   tidelock.HopState `json:"state"`
	At      exact             `json:"at"`
	After   *float64          `json:"after"` // since the push
	Took    *float64          `json:"took"`  // since the hop before
	Message string            `json:"message"`
}

// A trunkShape is a push or a packaging.
type trunkShape struct {
	hopShape
	PushID      *tidelock.PushID   `json:"push_id"`
	Refs        []tidelock.RefName `json:"refs"`
	ImageID     *tidelock.ImageID  `json:"image_id"`
	Tag         *string            `json:"tag"`
	Digest      *tidelock.Digest   `json:"digest"`
	Application *string            `json:"application"`
}

type placeShape struct {
	AgentID     tidelock.AgentID       `json:"agent_id"`
	Agent       string                 `json:"agent"`
	Source      tidelock.SourceID      `json:"source"`
	Applier     *tidelock.ObjectID     `json:"applier"`
	Environment *string                `json:"environment"`
	Ref         *tidelock.RefName      `json:"ref"`
	Digest      *tidelock.Digest       `json:"digest"`
	RolloutID   *tidelock.RolloutID    `json:"rollout_id"`
	State       *tidelock.RolloutState `json:"state"` // null without an applier
	Newest      bool                   `json:"newest"`
	Message     string                 `json:"message"`
	AcceptedAt  exact                  `json:"accepted_at"`
	Hops        []hopShape             `json:"hops"`
}

func shapeHop(h tidelock.Hop) hopShape {
	shape := hopShape{Hop: h.Kind, State: h.State, At: exact(h.At), Message: h.Message}
	if !h.At.IsZero() {
		shape.After, shape.Took = new(h.After.Seconds()), new(h.Took.Seconds())
	}
	return shape
}

func (a *API) showTimeline(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadHistory)
	if err != nil {
		return err
	}
	t, err := a.forge.Timeline(r.ctx(), r.by, project, r.arg("sha"))
	if err != nil {
		return missing("Commit", err)
	}
	return ok(w, timelineShape{
		ProjectID: t.Project, SHA: t.Commit, Title: orNull(t.Title), Author: orNull(t.Author), Carrier: orNull(t.Carrier), AcceptedAt: exact(t.AcceptedAt),
		WebURL: a.webURL(project.FullPath, "-/commit", string(t.Commit)+"/timeline"), MorePlaces: t.More, Hidden: t.Hidden,
		Hops: each(t.Hops, func(h tidelock.Hop) trunkShape {
			return trunkShape{
				hopShape: shapeHop(h), PushID: orNull(h.Push), Refs: list(h.Refs), ImageID: orNull(h.Image),
				Tag: orNull(h.Tag), Digest: orNull(h.Digest), Application: orNull(h.Application),
			}
		}),
		Places: each(t.Places, func(p tidelock.Place) placeShape {
			return placeShape{
				AgentID: p.Agent, Agent: p.AgentName, Source: p.Source, Applier: orNull(p.Applier), Environment: orNull(p.Environment), Ref: orNull(p.Ref),
				Digest: orNull(p.Digest), RolloutID: orNull(p.Rollout), State: orNull(p.State), Newest: p.Newest, Message: p.Message,
				AcceptedAt: exact(p.AcceptedAt), Hops: each(p.Hops, shapeHop),
			}
		}),
	})
}
