package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// A timelineRow is a commit's way into clusters as our own route tells it.
type timelineRow struct {
	SHA        string     `json:"sha"`
	Title      string     `json:"title"`
	Author     string     `json:"author_name"`
	Carrier    string     `json:"carrier"`
	AcceptedAt *time.Time `json:"accepted_at"`
	WebURL     string     `json:"web_url"`
	Hops       []hopRow   `json:"hops"`
	Places     []placeRow `json:"places"`
	More       int        `json:"more_places"`
	Hidden     bool       `json:"places_hidden"`
}

type hopRow struct {
	Hop         string     `json:"hop"`
	State       string     `json:"state"`
	At          *time.Time `json:"at"`
	After       *float64   `json:"after"`
	Took        *float64   `json:"took"`
	Message     string     `json:"message"`
	PushID      int64      `json:"push_id"`
	Refs        []string   `json:"refs"`
	Tag         string     `json:"tag"`
	Digest      string     `json:"digest"`
	Application string     `json:"application"`
}

type placeRow struct {
	Agent       string   `json:"agent"`
	Source      string   `json:"source"`
	Applier     string   `json:"applier"`
	Environment string   `json:"environment"`
	State       string   `json:"state"`
	Message     string   `json:"message"`
	Hops        []hopRow `json:"hops"`
}

func newTraceCommand(env *environment) *cobra.Command {
	var source sourceFlags
	var output outputFlag
	var about commitFlags
	cmd := &cobra.Command{
		Use:   "trace [commit]",
		Short: "Show how a commit went from its push into clusters",
		Long: `Show how a commit went from its push into clusters: when it was accepted,
packaged, announced, triggered, fetched, applied, healthy and reported, for
every object that applies it. All times are on the server's clock, and count
from the push.

` + whichCommit,
		Example: `  tidelock trace
  tidelock trace 1a2b3c4d --project team/site
  tidelock trace main --project team/site -o json`,
		Args: atMostOneCommit,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			project, commit, err := about.find(cmd.Context(), env, c.source, args)
			if err != nil {
				return err
			}
			found, err := call[timelineRow](cmd.Context(), c, http.MethodGet, at("projects/%s/repository/commits/%s/timeline", project, commit), nil)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, found.raw)
			}
			return found.value.table(env.stdout)
		},
	}
	about.add(cmd)
	source.add(cmd)
	output.add(cmd)
	return cmd
}

// drawnPlaces is up to how many places each is drawn hop by hop; more are
// lines of one table.
const drawnPlaces = 6

func (t timelineRow) table(w io.Writer) error {
	fmt.Fprintf(w, "commit %s", t.SHA)
	if t.Title != "" {
		fmt.Fprintf(w, "  %s", plain(t.Title))
	}
	fmt.Fprintln(w)
	if t.Carrier != "" {
		fmt.Fprintf(w, "pushed together with %s, of which this is told\n", short(t.Carrier))
	}
	for _, h := range t.Hops {
		fmt.Fprintf(w, "  %s\n", plain(h.sentence()))
	}
	if len(t.Hops) == 0 {
		fmt.Fprintln(w, "  no push of it is remembered")
	}
	switch {
	case t.Hidden:
		fmt.Fprintln(w, "\nwhere it goes is shown to reporters of the project and above")
		return nil
	case len(t.Places) == 0:
		fmt.Fprintln(w, "\nnothing deploys it yet")
		return nil
	case len(t.Places) > drawnPlaces:
		return t.places(w)
	}
	scale := 0.0
	for _, p := range t.Places {
		for _, h := range p.Hops {
			if h.After != nil {
				scale = max(scale, *h.After)
			}
		}
	}
	for _, p := range t.Places {
		fmt.Fprintf(w, "\n%s  %s\n", plain(p.name()), p.state())
		for _, h := range p.Hops {
			fmt.Fprintln(w, strings.TrimRight("  "+plain(h.line(scale)), " "))
		}
		if p.Message != "" && p.State != "success" { // that all is well has been said
			fmt.Fprintf(w, "  %s\n", plain(oneLine(p.Message)))
		}
	}
	return nil
}

// sentence tells of a push or a packaging.
func (h hopRow) sentence() string {
	when := ""
	if h.At != nil {
		when = h.At.UTC().Format("2006-01-02 15:04:05.000 ")
	}
	what := ""
	switch {
	case h.Hop == "packaged":
		what = cmp.Or(h.Application, ".tidelock/delivery.yaml")
		if h.Digest != "" {
			what += " into " + short(h.Digest)
		}
	case h.Digest != "":
		what = cmp.Or(h.Tag, "an artifact") + "@" + short(h.Digest)
	default:
		for i, ref := range h.Refs {
			if i > 0 {
				what += ", "
			}
			what += shortRef(ref)
		}
	}
	text := fmt.Sprintf("%s%-9s %s", when, h.Hop, what)
	if h.State != "done" {
		text += " " + h.State
	}
	if h.After != nil && *h.After > 0 {
		text += " +" + seconds(*h.After)
	}
	if h.Message != "" {
		text += ": " + oneLine(h.Message)
	}
	return text
}

// barWidth is the length of the whole time that is drawn.
const barWidth = 40

// line draws one hop: its name, when it was, and how long it took as a bar
// that begins where the hop before ended.
func (h hopRow) line(scale float64) string {
	if h.After == nil || h.Took == nil {
		return fmt.Sprintf("%-10s %10s", h.Hop, h.State)
	}
	state := ""
	if h.State != "done" {
		state = " " + h.State
	}
	bar := ""
	if scale > 0 {
		from := min(int((*h.After-*h.Took)/scale*barWidth+.5), barWidth-1)
		to := max(int(*h.After/scale*barWidth+.5), from+1)
		bar = strings.Repeat(" ", max(from, 0)) + strings.Repeat("█", to-max(from, 0))
	}
	return fmt.Sprintf("%-10s %10s  %s%s", h.Hop, "+"+seconds(*h.After), bar, state)
}

// places is a line for each place.
func (t timelineRow) places(w io.Writer) error {
	fmt.Fprintln(w)
	columns := []string{"announced", "triggered", "fetched", "applied", "healthy", "reported"}
	header := []string{"ENVIRONMENT", "OBJECT", "AGENT", "STATE"}
	for _, c := range columns {
		header = append(header, strings.ToUpper(c))
	}
	table := newTable(w, append(header, "MESSAGE")...)
	for _, p := range t.Places {
		row := []string{orDash(p.Environment), cmp.Or(p.Applier, p.Source), p.Agent, p.state()}
		for _, c := range columns {
			row = append(row, p.cell(c))
		}
		table.row(append(row, oneLine(p.Message))...)
	}
	if t.More > 0 {
		table.row(fmt.Sprintf("and %d more", t.More))
	}
	return table.flush()
}

// cell is the last word on one hop.
func (p placeRow) cell(hop string) string {
	text := "-"
	for _, h := range p.Hops {
		switch {
		case h.Hop != hop:
		case h.State != "done":
			text = h.State
		case h.After != nil:
			text = seconds(*h.After)
		}
	}
	return text
}

func (p placeRow) name() string {
	name := cmp.Or(p.Applier, p.Source) + " on " + p.Agent
	if p.Environment == "" {
		return name
	}
	return p.Environment + ": " + name
}

func (p placeRow) state() string {
	switch {
	case p.State == "success":
		return "live"
	case p.State != "":
		return p.State
	case len(p.Hops) > 0 && p.Hops[len(p.Hops)-1].State != "done":
		return p.Hops[len(p.Hops)-1].State
	}
	return "nothing applies it"
}

// seconds writes a span for people.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
