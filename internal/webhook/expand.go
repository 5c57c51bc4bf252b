package webhook

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// expandAll makes deliveries of everything that was noted. An event that
// cannot be expanded now holds up those of its project, which keep their
// order, and no others. It reports whether all went well.
func (w *Worker) expandAll(ctx context.Context) bool {
	stuck := map[tidelock.ProjectID]tidelock.HookEventID{}
	var last tidelock.HookEventID
	for {
		events, err := w.outbox.HookEvents(ctx, last, expandBy)
		if err != nil {
			w.warn(ctx, "hook events not read", err)
			return false
		}
		for _, e := range events {
			last = e.ID
			if stuck[e.Project] != 0 {
				continue
			}
			if err := w.expand(ctx, e); err != nil {
				if w.stuck[e.Project] != e.ID { // it is told once
					w.warn(ctx, "hook event not expanded", err)
				}
				stuck[e.Project] = e.ID
			}
			if ctx.Err() != nil {
				return false
			}
		}
		if len(events) < expandBy {
			w.stuck = stuck
			w.metrics.stuck.Set(float64(len(stuck)))
			return len(stuck) == 0
		}
	}
}

// expand makes deliveries of one event. An event of something that is gone,
// or of which no hook wants to know any more, leaves none.
func (w *Worker) expand(ctx context.Context, e tidelock.HookEvent) error {
	deliveries, err := w.deliveriesOf(ctx, e)
	if tidelock.KindOf(err) == tidelock.NotFound {
		deliveries, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("expand hook event %d: %w", e.ID, err)
	}
	return w.outbox.ExpandHookEvent(ctx, e.ID, deliveries, maxWait)
}

func (w *Worker) deliveriesOf(ctx context.Context, e tidelock.HookEvent) ([]tidelock.Delivery, error) {
	hooks, err := w.Forge.HooksFor(ctx, e)
	if err != nil || len(hooks) == 0 {
		return nil, err
	}
	facts, err := w.Forge.HookFacts(ctx, e)
	if err != nil {
		return nil, err
	}
	bodies, err := w.bodies(ctx, e, facts)
	if err != nil {
		return nil, err
	}
	var deliveries []tidelock.Delivery
	now := w.Now().UTC()
	for _, body := range bodies {
		event := newUUID()
		for _, h := range hooks {
			if branch, ok := body.ref.Branch(); ok && e.Kind == tidelock.HookPush && !h.WantsBranch(branch) {
				continue
			}
			deliveries = append(deliveries, tidelock.Delivery{
				Hook: h.ID, Kind: e.Kind, Ref: body.ref, UUID: newUUID(), Event: event, Body: body.text, NextAt: now,
			})
		}
	}
	return deliveries, nil
}

// A body is what is sent, and the ref that it tells of.
type body struct {
	ref  tidelock.RefName
	text []byte
}

const (
	// maxListed is how many refs one push may move for their commits to be
	// listed.
	maxListed = 50
	// maxReading is for reading the commits of one push, while others wait.
	maxReading = 10 * time.Second
)

// bodies makes what hooks are told of an event: of a push, one for each ref.
func (w *Worker) bodies(ctx context.Context, e tidelock.HookEvent, facts forge.HookFacts) ([]body, error) {
	switch e.Kind {
	case tidelock.HookPipeline:
		text, err := fit(w.links.pipeline(facts))
		return []body{{shortRef(facts.Pipeline.Ref, facts.Pipeline.Tag), text}}, err
	case tidelock.HookDeployment:
		text, err := fit(w.links.deployment(facts))
		return []body{{shortRef(facts.Deployment.Ref, facts.Deployment.Tag), text}}, err
	}
	reading, cancel := context.WithTimeout(ctx, maxReading)
	defer cancel()
	var bodies []body
	for _, u := range facts.Push.Updates {
		if u.HookKind() != e.Kind {
			continue
		}
		payload := w.links.push(facts, u)
		if e.Kind == tidelock.HookPush && len(facts.Push.Updates) <= maxListed {
			commits, total, err := w.Forge.PushedCommits(reading, facts.Project, u, maxCommits)
			switch {
			case ctx.Err() != nil:
				return nil, err
			case err != nil: // such as commits that were forced away and collected, or too many to count; the push is told all the same
				w.log.WarnContext(ctx, "commits of a push not read", "project", facts.Project.ID, "push", facts.Push.ID, "error", err)
			}
			payload.list(w.links.shapeCommits(facts.Project, commits), total)
		}
		text, err := fit(payload)
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body{u.Ref, text})
	}
	return bodies, nil
}

func shortRef(name string, tag bool) tidelock.RefName {
	if tag {
		return tidelock.TagRef(name)
	}
	return tidelock.BranchRef(name)
}

// newUUID is a random UUID, which is what GitLab's clients expect.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
