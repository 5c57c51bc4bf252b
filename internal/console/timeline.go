package console

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// What stands between the path of a project and a commit, or the id of a
// pipeline.
const (
	commitBelow    = "/-/commit/"
	pipelinesBelow = "/-/pipelines/"
)

// What the page of a commit shows at most, and how often it is read again
// while somebody may wait for it.
const (
	placesShown  = 500
	refreshAfter = 5 // seconds
	refreshFor   = time.Hour
)

// timelinePage is one commit and its way into clusters.
type timelinePage struct {
	frame
	Now time.Time

	Project     string
	ProjectLink string
	Commit      string
	Heading     string // the commit's title
	Author      string
	AuthoredAt  time.Time
	Carrier     string // the commit that it came with; "" for none
	CarrierLink string

	States  []stateCount // of all places, worst first
	Trunk   []trunkRow
	Columns []tidelock.HopKind
	Legend  []tidelock.HopKind // what bars show
	Scale   time.Duration      // how long a whole bar is
	Groups  []placeGroup
	More    int
	Hidden  bool // places are not for this viewer
	Held    bool // it would be read again, but was asked to stand still
	Why     whyPanel
}

// A trunkRow is a push or a packaging.
type trunkRow struct {
	At      time.Time
	After   time.Duration
	State   string
	Tone    tone
	Moves   []move
	By      string // "" when not known or not to be shown
	Message string
}

// A placeGroup are the places of one environment.
type placeGroup struct {
	Environment string // "" for those that belong to none
	States      []stateCount
	Rows        []placeRow
}

type placeRow struct {
	Kind    string // of the object
	Object  string // namespace/name
	Agent   string
	State   string
	Tone    tone
	Message string
	Steps   []step // one for each column
	Bar     []barPart
}

// A step is what one column says of a place.
type step struct {
	Known bool
	State tidelock.HopState
	At    time.Time
	After time.Duration
}

// A barPart is a hop as a length, in thousandths of the whole bar.
type barPart struct {
	Kind  tidelock.HopKind
	State tidelock.HopState
	From  int64
	Width int64
	Took  time.Duration
}

func (c *Console) timelineLink(p tidelock.Project, commit tidelock.CommitID) string {
	return c.projectLink(p) + commitBelow + string(commit) + "/timeline"
}

// commit answers for what lies under a commit.
func (c *Console) commit(w http.ResponseWriter, r *http.Request, viewer forge.Principal, project tidelock.Project, rest string) error {
	rev, whole := strings.CutSuffix(rest, "/timeline") // a branch may have slashes
	if rev == "" {
		return errNoPage()
	}
	timeline, err := c.forge.Timeline(r.Context(), viewer, project, rev)
	switch kind := tidelock.KindOf(err); {
	case kind == tidelock.NotFound || kind == tidelock.Denied || kind == tidelock.Unauthenticated:
		return errNoPage()
	case err != nil:
		return fmt.Errorf("read the timeline of %q in project %d: %w", rev, project.ID, err)
	case !whole || rev != string(timeline.Commit): // one address for each commit
		http.Redirect(w, r, c.timelineLink(project, timeline.Commit), http.StatusFound)
		return nil
	}
	page := timelinePage{
		frame: c.frame("Commit "+short(rev)+" in "+project.FullPath, viewer), Now: c.now(),
		Project: project.FullPath, ProjectLink: c.projectLink(project), Commit: rev,
		Heading: timeline.Title, Author: timeline.Author, AuthoredAt: timeline.AuthoredAt,
		Columns: tidelock.HopKinds[2:], Hidden: timeline.Hidden,
	}
	if timeline.Carrier != "" {
		page.Carrier, page.CarrierLink = string(timeline.Carrier), c.timelineLink(project, timeline.Carrier)
	}
	look := c.look(viewer)
	look.projects[project.ID] = &project
	if err := look.trunk(r.Context(), project, timeline.Hops, &page); err != nil {
		return err
	}
	page.place(timeline)
	if r.URL.Query().Has("hold") { // what was opened or has the focus would be lost
		page.Held, page.Refresh = page.Refresh != 0, 0
	}
	if !timeline.Hidden {
		page.Why = c.why(r.Context(), viewer, project, timeline.Commit)
	}
	return c.render(w, http.StatusOK, "timeline", page)
}

// pipeline leads to the commit of a pipeline, whose page tells more than its
// jobs do.
func (c *Console) pipeline(w http.ResponseWriter, r *http.Request, viewer forge.Principal, project tidelock.Project, id string) error {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return errNoPage()
	}
	pipeline, err := c.forge.Pipeline(r.Context(), viewer, project, tidelock.PipelineID(n))
	switch kind := tidelock.KindOf(err); {
	case kind == tidelock.NotFound || kind == tidelock.Denied || kind == tidelock.Unauthenticated:
		return errNoPage()
	case err != nil:
		return fmt.Errorf("read pipeline %d: %w", n, err)
	}
	http.Redirect(w, r, c.timelineLink(project, pipeline.Commit), http.StatusFound)
	return nil
}

// trunk tells of pushes and packagings.
func (l *look) trunk(ctx context.Context, project tidelock.Project, hops []tidelock.Hop, page *timelinePage) error {
	for _, h := range hops {
		row := trunkRow{At: h.At, After: h.After, Message: h.Message}
		row.State, row.Tone = hopWords(h)
		switch {
		case h.Image != 0:
			image, err := l.image(ctx, h.Image)
			if err != nil {
				return err
			}
			row.Moves = []move{l.imageMove(project, image, tidelock.ArtifactUpdate{Image: h.Image, Tag: h.Tag, Old: "-", New: h.Digest})}
		case h.Kind == tidelock.HopPackaged:
			row.Moves = []move{{Name: cmp.Or(h.Application, ".tidelock/delivery.yaml"), Kind: "application", Target: string(h.Digest)}}
		default:
			for _, ref := range h.Refs {
				m := refMove(tidelock.RefUpdate{Ref: ref, Old: "-", New: "-"})
				row.Moves = append(row.Moves, m)
			}
		}
		var err error
		if row.By, err = l.username(ctx, h.By); err != nil {
			return err
		}
		page.Trunk = append(page.Trunk, row)
	}
	return nil
}

// place fills in the places.
func (page *timelinePage) place(t tidelock.Timeline) {
	shown := t.Places[:min(len(t.Places), placesShown)]
	page.More = t.More + len(t.Places) - len(shown)
	for _, p := range shown {
		for _, h := range p.Hops {
			page.Scale = max(page.Scale, h.After)
		}
	}
	page.Legend = page.Columns
	waiting := false
	for _, p := range shown {
		i := slices.IndexFunc(page.Groups, func(g placeGroup) bool { return g.Environment == p.Environment })
		if i < 0 {
			i = len(page.Groups)
			page.Groups = append(page.Groups, placeGroup{Environment: p.Environment})
		}
		row := page.row(p)
		waiting = waiting || row.Tone == busy
		if slices.ContainsFunc(row.Bar, func(b barPart) bool { return b.Kind == tidelock.HopPackaged }) {
			page.Legend = tidelock.HopKinds[1:]
		}
		page.Groups[i].Rows = append(page.Groups[i].Rows, row)
	}
	for i, g := range page.Groups {
		slices.SortStableFunc(g.Rows, func(a, b placeRow) int { return byTone(a.Tone, b.Tone) })
		page.Groups[i].States = countTones(g.Rows)
	}
	var all []placeRow
	for _, g := range page.Groups {
		all = append(all, g.Rows...)
	}
	page.States = countTones(all)
	if (waiting || len(all) == 0 && !t.Hidden) && !t.AcceptedAt.IsZero() && page.Now.Sub(t.AcceptedAt) < refreshFor {
		page.Refresh = refreshAfter
	}
}

func (page *timelinePage) row(p tidelock.Place) placeRow {
	row := placeRow{Agent: p.AgentName, Message: p.Message}
	object := p.Applier
	if object == "" {
		object = tidelock.ObjectID(p.Source)
	}
	kind, namespace, name := object.Split()
	row.Kind, row.Object = string(kind), namespace+"/"+name
	row.State, row.Tone = placeWords(p)
	if row.Tone == good {
		row.Message = "" // that all is well has been said
	}
	for _, kind := range page.Columns {
		row.Steps = append(row.Steps, stepOf(p, kind))
	}
	row.Bar = bar(p, page.Scale)
	return row
}

// stepOf is the last word on one hop.
func stepOf(p tidelock.Place, kind tidelock.HopKind) step {
	for _, h := range slices.Backward(p.Hops) {
		if h.Kind == kind {
			return step{Known: true, State: h.State, At: h.At, After: h.After}
		}
	}
	return step{}
}

// bar draws hops as lengths, each from the hop before it. What takes no time
// can still be seen.
func bar(p tidelock.Place, scale time.Duration) (parts []barPart) {
	const whole, least = 1000, 4
	if scale <= 0 {
		return nil
	}
	for _, h := range p.Hops {
		if h.At.IsZero() || h.Kind == tidelock.HopAccepted {
			continue
		}
		from := int64((h.After - h.Took) * whole / scale)
		width := max(int64(h.Took*whole/scale), least)
		from = min(max(from, 0), whole-width)
		parts = append(parts, barPart{Kind: h.Kind, State: h.State, From: from, Width: width, Took: h.Took})
	}
	return parts
}

// rolloutWords say how a commit stands in an applier.
func rolloutWords(state tidelock.RolloutState) (string, tone) {
	switch state {
	case tidelock.RolloutSuccess:
		return "live", good
	case tidelock.RolloutFailed:
		return "failed", bad
	case tidelock.RolloutSuperseded:
		return "superseded", idle
	case tidelock.RolloutRunning:
		return "running", busy
	case tidelock.RolloutPending:
		return "pending", busy
	}
	return "unknown", warn
}

// placeWords say how a place stands.
func placeWords(p tidelock.Place) (string, tone) {
	if p.State != "" {
		return rolloutWords(p.State)
	}
	if len(p.Hops) == 0 {
		return "unknown", warn
	}
	switch last := p.Hops[len(p.Hops)-1]; last.State {
	case tidelock.HopFailed:
		return "failed", bad
	case tidelock.HopSuperseded:
		return "superseded", idle
	case tidelock.HopWaiting:
		return "on its way", busy
	}
	return "fetched, nothing applies it", idle
}

// hopWords say what a push or a packaging came to.
func hopWords(h tidelock.Hop) (string, tone) {
	switch {
	case h.State == tidelock.HopFailed:
		return "not packaged", bad
	case h.State == tidelock.HopSkipped:
		return "packaged before", idle
	case h.Kind == tidelock.HopPackaged:
		return "packaged", good
	}
	return "pushed", good
}

// countTones tells how many places stand how, worst first.
func countTones(rows []placeRow) []stateCount {
	all := make([]stateCount, len(rows))
	for i, row := range rows {
		all[i] = stateCount{row.State, row.Tone, 1}
	}
	return tally(all)
}

// byTone puts the worst first.
func byTone(a, b tone) int {
	order := []tone{bad, warn, busy, good, idle}
	return cmp.Compare(slices.Index(order, a), slices.Index(order, b))
}
