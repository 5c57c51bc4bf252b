package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
)

// outputFlag is the -o of commands that print something.
type outputFlag string

func (o *outputFlag) add(cmd *cobra.Command) {
	*o = "table"
	cmd.Flags().VarP(o, "output", "o", "table or json")
}

func (o *outputFlag) String() string { return string(*o) }
func (o *outputFlag) Type() string   { return "format" }

func (o *outputFlag) Set(value string) error {
	if value != "table" && value != "json" {
		return fmt.Errorf("must be table or json")
	}
	*o = outputFlag(value)
	return nil
}

func (o outputFlag) json() bool { return o == "json" }

// limitFlag is the --limit of commands that list: at least 1.
type limitFlag int

func (l *limitFlag) add(cmd *cobra.Command, usual int, usage string) {
	*l = limitFlag(usual)
	cmd.Flags().Var(l, "limit", usage)
}

func (l *limitFlag) String() string { return strconv.Itoa(int(*l)) }
func (l *limitFlag) Type() string   { return "int" }

func (l *limitFlag) Set(value string) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		return fmt.Errorf("must be a number of at least 1")
	}
	*l = limitFlag(n)
	return nil
}

// print writes a result as it is asked for.
func (o outputFlag) print(w io.Writer, result interface{ table(io.Writer) error }) error {
	if o.json() {
		return printJSON(w, result)
	}
	return result.table(w)
}

// printJSON writes one document, as complete as the server gave it.
func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// A table lines up columns for people.
type table struct {
	w *tabwriter.Writer
}

func newTable(w io.Writer, header ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)}
	if len(header) > 0 {
		t.row(header...)
	}
	return t
}

func (t *table) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = plain(cell)
	}
	fmt.Fprintln(t.w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

func (t *table) flush() error { return t.w.Flush() }

// plain keeps text that others wrote from driving the terminal: characters
// that are invisible, move the cursor or turn the text around become a mark.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// oneLine is a message as it stands in a line or a table.
func oneLine(message string) string { return strings.Join(strings.Fields(message), " ") }

// ago is how long before now a time was, in one unit.
func ago(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "never"
	}
	switch d := time.Since(*t); {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
}

// short is the name of a commit, or the digest of an artifact, as people write
// it.
func short(revision string) string {
	algorithm, hash, ok := strings.Cut(revision, ":")
	if !ok {
		return revision[:min(len(revision), shortHash)]
	}
	return algorithm + ":" + hash[:min(len(hash), shortHash)]
}

const shortHash = 8

// orDash stands in for what is not there.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
