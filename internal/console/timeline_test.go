package console

import (
	"bytes"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

var accepted = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// wayTo is a place whose hops take a second each, up to one that did not come
// about.
func wayTo(environment, name string, state tidelock.RolloutState, open tidelock.HopKind, how tidelock.HopState) tidelock.Place {
	p := tidelock.Place{
		AgentName: "prod", Source: "GitRepository/flux-system/site", Applier: tidelock.ObjectID("Kustomization/flux-system/" + name),
		Environment: environment, State: state, Message: "of " + name, AcceptedAt: accepted,
	}
	for i, kind := range tidelock.HopKinds {
		if kind == tidelock.HopPackaged {
			continue
		}
		h := tidelock.Hop{Kind: kind, State: tidelock.HopDone, At: accepted.Add(time.Duration(i) * time.Second), After: time.Duration(i) * time.Second, Took: time.Second}
		if kind == open {
			h.State = how
			if how == tidelock.HopWaiting {
				h.At, h.After, h.Took = time.Time{}, 0, 0
			}
			p.Hops = append(p.Hops, h)
			break
		}
		p.Hops = append(p.Hops, h)
	}
	return p
}

func TestPlaces(t *testing.T) {
	fetched := wayTo("", "", "", tidelock.HopFetched, tidelock.HopFailed)
	fetched.Applier = ""
	timeline := tidelock.Timeline{AcceptedAt: accepted, More: 3, Places: []tidelock.Place{
		fetched,
		wayTo("production", "live", tidelock.RolloutSuccess, "", ""),
		wayTo("production", "late", tidelock.RolloutSuperseded, tidelock.HopApplied, tidelock.HopSuperseded),
		wayTo("production", "bad", tidelock.RolloutFailed, tidelock.HopHealthy, tidelock.HopFailed),
		wayTo("staging", "busy", tidelock.RolloutRunning, tidelock.HopHealthy, tidelock.HopWaiting),
	}}
	page := timelinePage{Now: accepted.Add(time.Minute), Columns: tidelock.HopKinds[2:]}
	page.place(timeline)
	var got []string
	for _, g := range page.Groups {
		for _, r := range g.Rows {
			line := fmt.Sprintf("%s: %s %s %s %q", g.Environment, r.Kind, r.Object, r.State, r.Message)
			for _, s := range r.Steps {
				switch {
				case !s.Known:
					line += " –"
				case s.State == tidelock.HopDone:
					line += " " + s.After.String()
				default:
					line += " " + string(s.State)
				}
			}
			got = append(got, line)
			end := int64(0)
			for _, b := range r.Bar {
				if b.Width < 1 || b.From < end-4 || b.From+b.Width > 1000 {
					t.Errorf("%s: a part of the bar is %+v after %d", r.Object, b, end)
				}
				end = b.From + b.Width
			}
		}
	}
	want := []string{
		`: GitRepository flux-system/site failed "of " 2s 3s failed – – –`,
		`production: Kustomization flux-system/bad failed "of bad" 2s 3s 4s 5s failed –`,
		`production: Kustomization flux-system/live live "" 2s 3s 4s 5s 6s 7s`,
		`production: Kustomization flux-system/late superseded "of late" 2s 3s 4s superseded – –`,
		`staging: Kustomization flux-system/busy running "of busy" 2s 3s 4s 5s waiting –`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if page.More != 3 || page.Refresh == 0 || len(page.States) != 4 || page.States[0] != (stateCount{"failed", bad, 2}) {
		t.Errorf("got %d more, refreshed after %d s, states %+v", page.More, page.Refresh, page.States)
	}

	// It is read again only while something may come of it.
	for name, tc := range map[string]struct {
		now    time.Time
		places []tidelock.Place
		hidden bool
		want   bool
	}{
		"under way":       {accepted.Add(time.Minute), timeline.Places[4:], false, true},
		"for too long":    {accepted.Add(2 * time.Hour), timeline.Places[4:], false, false},
		"done":            {accepted.Add(time.Minute), timeline.Places[1:2], false, false},
		"nowhere yet":     {accepted.Add(time.Minute), nil, false, true},
		"not to be shown": {accepted.Add(time.Minute), nil, true, false},
	} {
		page := timelinePage{Now: tc.now, Columns: tidelock.HopKinds[2:]}
		page.place(tidelock.Timeline{AcceptedAt: accepted, Places: tc.places, Hidden: tc.hidden})
		if got := page.Refresh != 0; got != tc.want {
			t.Errorf("%s: it is read again: %t", name, got)
		}
	}
}

// TestTimelinePageIsBounded renders a page of very many places with hostile
// messages.
func TestTimelinePageIsBounded(t *testing.T) {
	timeline := tidelock.Timeline{AcceptedAt: accepted}
	for i := range 1000 {
		p := wayTo("production", fmt.Sprint("app-", i), tidelock.RolloutFailed, tidelock.HopApplied, tidelock.HopFailed)
		p.Message = "<script>alert(1)</script>\x1b[2J\u202e" + strings.Repeat("x", 4<<10)
		timeline.Places = append(timeline.Places, p)
	}
	page := timelinePage{Now: accepted, Columns: tidelock.HopKinds[2:]}
	page.place(timeline)
	if page.More != 500 {
		t.Errorf("got %d more, want 500", page.More)
	}
	text := drawn(t, page)
	for _, bad := range []string{"<script", "\x1b", "\u202e", "style=", "onerror"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	if len(text) > 8<<20 {
		t.Errorf("the page has %d bytes", len(text))
	}
}

func TestCommitWithoutAMessage(t *testing.T) {
	const gone = "no longer has this commit"
	if text := drawn(t, timelinePage{Commit: "1a2b3c4d", AuthoredAt: accepted, Now: accepted}); strings.Contains(text, gone) {
		t.Error("a commit without a title is said to be gone")
	}
	if text := drawn(t, timelinePage{Commit: "1a2b3c4d", Now: accepted}); !strings.Contains(text, gone) {
		t.Error("a commit that is gone is not said to be")
	}
}

func TestWhyPanel(t *testing.T) {
	verdict := func(environment string, code tidelock.CauseCode) tidelock.Verdict {
		return tidelock.Verdict{Environment: environment, Code: code, Sentence: "of " + environment, Since: accepted}
	}
	older := verdict("a", tidelock.CauseOlder)
	verdicts := []tidelock.Verdict{
		older, verdict("b", tidelock.CauseNone), verdict("c", tidelock.CausePathNotTouched),
		verdict("d", tidelock.CauseWaiting), verdict("e", tidelock.CauseUnknown), verdict("f", tidelock.CauseTLS),
	}
	var got []string
	panel := panelOf(verdicts)
	for _, row := range panel.Shown {
		got = append(got, row.Environment+" "+row.State)
	}
	if want := []string{"f blocked", "e unknown", "d on its way", "a live in a later commit", "c changes nothing"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, tc := range []struct {
		verdicts []tidelock.Verdict
		heading  string
	}{
		{verdicts, "Why it is not live"},
		{verdicts[:2], "Is it live?"},
	} {
		if text := drawn(t, timelinePage{Why: panelOf(tc.verdicts), Now: accepted}); !strings.Contains(text, tc.heading+"</h2>") {
			t.Errorf("the page lacks %q:\n%s", tc.heading, text)
		}
	}
	if panel := panelOf(nil); strings.Contains(drawn(t, timelinePage{Why: panel}), `id="why"`) {
		t.Error("there is a panel that says nothing")
	}
	panel = panelOf(append(slices.Repeat([]tidelock.Verdict{older}, verdictsShown), verdicts[5]))
	if len(panel.Shown) != verdictsShown || panel.More != 1 || panel.Shown[0].Environment != "f" {
		t.Errorf("got %d and %d more, first %+v", len(panel.Shown), panel.More, panel.Shown[0])
	}
}

// drawn is the page as HTML.
func drawn(t *testing.T, page timelinePage) string {
	t.Helper()
	pages, err := template.New("").Funcs(functions).ParseFS(templateFiles, "templates/*.html")
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := pages.ExecuteTemplate(&text, "timeline", page); err != nil {
		t.Fatal(err)
	}
	return text.String()
}
