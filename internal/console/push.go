package console

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/signing"
)

// A pushTable lists pushes with how far each came.
type pushTable struct {
	Now          time.Time
	OfOneProject bool // which then is not named in each row
	Rows         []pushRow
}

type pushRow struct {
	At      time.Time
	Project string
	Link    string // to the project
	By      string // "" when not known or not to be shown
	Moves   []move
	More    int // further refs
	States  []stateCount
	Took    time.Duration // until all places had come to it; 0 while not all have
}

// A move is a ref, or a tag of an image, that a push moved.
type move struct {
	Name   string // short
	Link   string // of an image
	Kind   string // "branch", "tag", "ref", "image" or "signature of"
	Change string // "", "created" or "deleted"
	Target string // a commit or a digest; "" when deleted
	Way    string // link to the timeline of the commit; "" for none
}

type stateCount struct {
	State string
	Tone  tone
	Count int
}

// pushes reads what is to be told of pushes. Those of projects that the viewer
// may not see are left out.
func (l *look) pushes(ctx context.Context, pushes []tidelock.Push) (pushTable, error) {
	f := l.console.forge
	table := pushTable{Now: l.console.now()}
	for _, push := range pushes {
		project, err := l.project(ctx, push.Project)
		if err != nil {
			return table, err
		}
		if project == nil {
			continue
		}
		announced, _, err := f.Announcements(ctx, l.viewer, *project, tidelock.AnnouncementFilter{Push: push.ID}, tidelock.Page{})
		switch kind := tidelock.KindOf(err); {
		case kind == tidelock.Denied || kind == tidelock.Unauthenticated:
			announced = nil // whose clusters follow it is for members
		case kind == tidelock.NotFound:
			continue
		case err != nil:
			return table, fmt.Errorf("list the announcements of push %d: %w", push.ID, err)
		}
		rollouts, err := l.rollouts(ctx, *project, push, announced)
		if err != nil {
			return table, err
		}
		row := pushRowOf(push, announced, rollouts)
		row.Project, row.Link = project.FullPath, l.console.projectLink(*project)
		if row.By, err = l.username(ctx, push.By); err != nil {
			return table, err
		}
		for i, m := range row.Moves {
			if m.Target != "" {
				row.Moves[i].Way = l.console.timelineLink(*project, tidelock.CommitID(m.Target))
			}
		}
		if push.Artifact != nil {
			image, err := l.image(ctx, push.Artifact.Image)
			if err != nil {
				return table, err
			}
			row.Moves = []move{l.imageMove(*project, image, *push.Artifact)}
		}
		table.Rows = append(table.Rows, row)
	}
	return table, nil
}

// rolloutsShown is how many rollouts of one commit are counted.
const rolloutsShown = 500

// rollouts lists what appliers made of the commits that were announced.
func (l *look) rollouts(ctx context.Context, project tidelock.Project, push tidelock.Push, announced []tidelock.Announcement) (all []tidelock.Rollout, err error) {
	asked := map[tidelock.CommitID]bool{"": true}
	for _, a := range announced {
		commit := commitOf(push, a)
		if asked[commit] {
			continue
		}
		asked[commit] = true
		some, _, err := l.console.forge.Rollouts(ctx, l.viewer, project, tidelock.RolloutFilter{Commit: commit}, tidelock.Page{Number: 1, PerPage: rolloutsShown})
		switch kind := tidelock.KindOf(err); {
		case kind == tidelock.Denied || kind == tidelock.Unauthenticated || kind == tidelock.NotFound:
			return nil, nil // they are for members
		case err != nil:
			return nil, fmt.Errorf("list the rollouts of %s in project %d: %w", commit, project.ID, err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// commitOf is what an announcement of a push brought; "" when not known.
func commitOf(push tidelock.Push, a tidelock.Announcement) tidelock.CommitID {
	if a.Commit == "" && push.Artifact != nil {
		return push.Artifact.Commit
	}
	return a.Commit
}

// image returns nil for one that is gone.
func (l *look) image(ctx context.Context, id tidelock.ImageID) (*tidelock.Image, error) {
	if i, ok := l.images[id]; ok {
		return i, nil
	}
	i, err := l.console.forge.ImageByID(ctx, id)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		l.images[id] = nil
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read image %d: %w", id, err)
	}
	l.images[id] = &i
	return &i, nil
}

func (l *look) imageMove(project tidelock.Project, image *tidelock.Image, u tidelock.ArtifactUpdate) move {
	m := move{Name: "an image that is gone", Kind: "image", Target: string(u.New)}
	if image != nil {
		m.Name, m.Link = image.Path(project), l.console.imageLink(project, *image)
	}
	m.Change = change(u.Old == "" && u.Tag != "", u.New == "")
	if subject, ok := signing.SubjectOf(u.Tag); ok {
		m.Kind, m.Name = "signature of", m.Name+"@"+short(string(subject))
	} else if u.Tag != "" {
		m.Name += ":" + u.Tag
	}
	return m
}

func pushRowOf(push tidelock.Push, announced []tidelock.Announcement, rollouts []tidelock.Rollout) pushRow {
	const refsShown = 3
	row := pushRow{At: push.At}
	row.States, row.Took = outcome(push, announced, rollouts)
	for i, u := range push.Updates {
		if i == refsShown {
			row.More = len(push.Updates) - i
			break
		}
		row.Moves = append(row.Moves, refMove(u))
	}
	return row
}

func refMove(u tidelock.RefUpdate) move {
	m := move{Name: string(u.Ref), Kind: "ref", Change: change(u.Old == "", u.New == ""), Target: string(u.Commit)}
	if branch, ok := u.Ref.Branch(); ok {
		m.Name, m.Kind = branch, "branch"
	} else if tag, ok := u.Ref.Tag(); ok {
		m.Name, m.Kind = tag, "tag"
	}
	return m
}

func change(created, deleted bool) string {
	switch {
	case deleted:
		return "deleted"
	case created:
		return "created"
	}
	return ""
}

// outcome tells how a push stands in every place: in the appliers of each
// source that it was announced to, or in the source itself if nothing applies
// it.
func outcome(push tidelock.Push, announced []tidelock.Announcement, rollouts []tidelock.Rollout) (counts []stateCount, longest time.Duration) {
	done := true
	end := func(at time.Time) {
		done = done && !at.IsZero()
		longest = max(longest, at.Sub(push.At))
	}
	for _, a := range announced {
		applied := false
		for _, r := range rollouts {
			if r.Agent != a.Agent || r.Source != a.Source || r.Commit != commitOf(push, a) {
				continue
			}
			applied = true
			words, tone := rolloutWords(r.State)
			counts = append(counts, stateCount{words, tone, 1})
			switch r.State {
			case tidelock.RolloutSuperseded:
			case tidelock.RolloutSuccess:
				end(cmp.Or(r.HealthyAt, r.FinishedAt))
			default:
				done = false
			}
		}
		if !applied {
			counts = append(counts, announcementWords(a.State))
			if a.State != tidelock.Closed {
				end(a.FetchedAt)
			}
		}
	}
	if !done {
		longest = 0
	}
	return tally(counts), longest
}

// announcementWords are what people read of the state of an announcement.
func announcementWords(state tidelock.AnnouncementState) stateCount {
	switch state {
	case tidelock.Failed:
		return stateCount{"failed", bad, 1}
	case tidelock.Parked:
		return stateCount{"suspended", warn, 1}
	case tidelock.Sent:
		return stateCount{"sent", busy, 1}
	case tidelock.Delivered:
		return stateCount{"at the agent", busy, 1}
	case tidelock.Handled:
		return stateCount{"handled", busy, 1}
	case tidelock.Converged:
		return stateCount{"fetched", good, 1}
	case tidelock.Gone:
		return stateCount{"ref deleted", idle, 1}
	case tidelock.Closed:
		return stateCount{"superseded", idle, 1}
	}
	return stateCount{"unknown", warn, 1}
}

// tally adds up what is in the same state, worst first.
func tally(all []stateCount) (counts []stateCount) {
	for _, one := range all {
		i := slices.IndexFunc(counts, func(c stateCount) bool { return c.State == one.State })
		if i < 0 {
			i = len(counts)
			counts = append(counts, stateCount{State: one.State, Tone: one.Tone})
		}
		counts[i].Count += one.Count
	}
	slices.SortStableFunc(counts, func(a, b stateCount) int { return byTone(a.Tone, b.Tone) })
	return counts
}
