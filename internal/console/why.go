package console

import (
	"context"
	"fmt"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A whyPanel says what keeps a commit from being live; the zero value says
// nothing.
type whyPanel struct {
	Shown []whyRow
	More  int
}

// A whyRow is the answer for one environment.
type whyRow struct {
	tidelock.Verdict
	State string
	Tone  tone
}

// verdictsShown is how many environments one page tells of.
const verdictsShown = 20

// why asks for a viewer who may know where the commit goes.
func (c *Console) why(ctx context.Context, viewer forge.Principal, project tidelock.Project, commit tidelock.CommitID) (whyPanel, error) {
	verdicts, err := c.forge.Why(ctx, viewer, project, string(commit), "")
	switch kind := tidelock.KindOf(err); {
	case kind == tidelock.NotFound || kind == tidelock.Denied || kind == tidelock.Unauthenticated:
		return whyPanel{}, nil
	case err != nil:
		return whyPanel{}, fmt.Errorf("ask why %s is not live: %w", commit, err)
	}
	var panel whyPanel
	for _, v := range verdicts {
		if v.Code == tidelock.CauseNone || v.Code == tidelock.CauseOlder {
			continue // the rest of the page says so
		}
		if len(panel.Shown) == verdictsShown {
			panel.More++
			continue
		}
		row := whyRow{Verdict: v, State: "blocked", Tone: bad}
		switch v.Code {
		case tidelock.CauseUnknown:
			row.State, row.Tone = "unknown", warn
		case tidelock.CauseWaiting:
			row.State, row.Tone = "on its way", busy
		case tidelock.CausePathNotTouched:
			row.State, row.Tone = "changes nothing", idle
		}
		panel.Shown = append(panel.Shown, row)
	}
	return panel, nil
}
