package console

import (
	"context"
	"fmt"
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
	Took    time.Duration // from record to the last source that has it; 0 while not all have
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
		row := pushRowOf(push, announced)
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

func pushRowOf(push tidelock.Push, announced []tidelock.Announcement) pushRow {
	const refsShown = 3
	row := pushRow{At: push.At, States: countStates(announced), Took: slowest(push, announced)}
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

// slowest is how long it took until every announced source had the push.
func slowest(push tidelock.Push, announced []tidelock.Announcement) time.Duration {
	var longest time.Duration
	for _, a := range announced {
		if a.State == tidelock.Closed {
			continue
		}
		if a.FetchedAt.IsZero() {
			return 0
		}
		longest = max(longest, a.FetchedAt.Sub(push.At))
	}
	return longest
}

// states are all there are, worst first, with the words that people read.
var states = []struct {
	state tidelock.AnnouncementState
	words string
	tone  tone
}{
	{tidelock.Failed, "failed", bad},
	{tidelock.Parked, "suspended", warn},
	{tidelock.Sent, "sent", busy},
	{tidelock.Delivered, "at the agent", busy},
	{tidelock.Handled, "handled", busy},
	{tidelock.Gone, "ref deleted", idle},
	{tidelock.Converged, "live", good},
	{tidelock.Closed, "superseded", idle},
}

// countStates tells how many announcements are in which state, worst first.
func countStates(list []tidelock.Announcement) []stateCount {
	counts := map[tidelock.AnnouncementState]int{}
	for _, a := range list {
		counts[a.State]++
	}
	var out []stateCount
	for _, s := range states {
		if n := counts[s.state]; n > 0 {
			out = append(out, stateCount{s.words, s.tone, n})
		}
	}
	return out
}
