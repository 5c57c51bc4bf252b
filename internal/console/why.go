package console

import (
	"context"
	"slices"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A whyPanel says what keeps a commit from being live; the zero value says
// nothing.
type whyPanel struct {
	Shown   []whyRow
	More    int
	Blocked bool // somewhere something is in the way
}

// A whyRow is the answer for one environment.
type whyRow struct {
	tidelock.Verdict
	State string
	Tone  tone
}

// verdictsShown is how many environments one page tells of.
const verdictsShown = 20

// why asks for a viewer who may know where the commit goes. When there is no
// answer the panel says so, and the rest of the page is shown all the same.
func (c *Console) why(ctx context.Context, viewer forge.Principal, project tidelock.Project, commit tidelock.CommitID) whyPanel {
	verdicts, err := c.forge.Why(ctx, viewer, project, string(commit), "")
	switch kind := tidelock.KindOf(err); {
	case kind == tidelock.NotFound || kind == tidelock.Denied || kind == tidelock.Unauthenticated:
		return whyPanel{}
	case err != nil:
		c.log.ErrorContext(ctx, "cause not found", "project", project.ID, "commit", commit, "error", err)
		verdicts = []tidelock.Verdict{{
			Code: tidelock.CauseUnknown, Sentence: "it cannot be told now whether anything is in the way",
			Next: "look again in a moment; the log of the server says why it could not be told",
		}}
	}
	return panelOf(verdicts)
}

// panelOf tells of the environments where something is to be told, the worst
// first.
func panelOf(verdicts []tidelock.Verdict) (panel whyPanel) {
	for _, v := range verdicts {
		row := whyRow{Verdict: v, State: "blocked", Tone: bad}
		switch v.Code {
		case tidelock.CauseNone:
			continue // the rest of the page says so
		case tidelock.CauseOlder:
			row.State, row.Tone = "live in a later commit", good
		case tidelock.CauseUnknown:
			row.State, row.Tone = "unknown", warn
		case tidelock.CauseWaiting:
			row.State, row.Tone = "on its way", busy
		case tidelock.CausePathNotTouched:
			row.State, row.Tone = "changes nothing", idle
		}
		panel.Blocked = panel.Blocked || v.Blocking()
		panel.Shown = append(panel.Shown, row)
	}
	slices.SortStableFunc(panel.Shown, func(a, b whyRow) int { return byTone(a.Tone, b.Tone) })
	shown := min(len(panel.Shown), verdictsShown)
	panel.More, panel.Shown = len(panel.Shown)-shown, panel.Shown[:shown]
	return panel
}
