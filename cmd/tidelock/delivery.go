package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidelock.dev"
	"tidelock.dev/internal/delivery"
)

func newDeliveryCommand(env *environment) *cobra.Command {
	cmd := parent("delivery", "Follow and check delivery repositories",
		"A delivery repository names applications in .tidelock/delivery.yaml. The server packages each into an artifact whenever its files change.")
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newDeliveryListCommand(env, &source), newDeliveryShowCommand(env, &source), newDeliveryCheckCommand(env))
	return cmd
}

// A buildRow is the packaging of one application as our own route tells it.
type buildRow struct {
	Ref         string       `json:"ref"`
	Commit      string       `json:"commit"`
	Application string       `json:"application"`
	Status      string       `json:"status"`
	Image       string       `json:"image"`
	Tags        []string     `json:"tags"`
	Digest      string       `json:"digest"`
	Findings    []findingRow `json:"findings"`
	CreatedAt   time.Time    `json:"created_at"`
	Duration    float64      `json:"duration"`
}

type findingRow struct {
	Check   string `json:"check"`
	Level   string `json:"level"`
	Path    string `json:"path"`
	Line    int    `json:"line"`
	Message string `json:"message"`
}

func (f findingRow) String() string {
	return tidelock.Finding{Path: f.Path, Line: f.Line, Message: f.Message}.String()
}

// name is the application, or the file that names them all.
func (b buildRow) name() string { return cmp.Or(b.Application, delivery.ConfigPath) }

func newDeliveryListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var limit limitFlag
	var application string
	var all bool
	cmd := &cobra.Command{
		Use:   "list <project>",
		Short: "List how the applications of a project stand",
		Long: `List how each application of a delivery repository stands under each branch
and release: what its newest packaging came to, and which artifact that made.
With --all, list every packaging, newest first.`,
		Example: "  tidelock delivery list team/delivery\n  tidelock delivery list team/delivery --all --application shop",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			query := struct {
				Application string `url:"application,omitempty"`
				Latest      bool   `url:"latest,omitempty"`
			}{application, !all}
			builds, err := list[buildRow](cmd.Context(), c, at("projects/%s/deliveries", args[0]), query, int(limit))
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, rawOf(builds))
			}
			t := newTable(env.stdout, "APPLICATION", "REF", "COMMIT", "STATUS", "DIGEST", "TAGS", "WHEN", "TOOK")
			for _, item := range builds {
				b := item.value
				t.row(b.name(), shortRef(b.Ref), short(b.Commit), b.Status, orDash(short(b.Digest)), orDash(strings.Join(b.Tags, ", ")),
					ago(&b.CreatedAt), fmt.Sprintf("%.0f ms", b.Duration*1000))
			}
			return t.flush()
		},
	}
	limit.add(cmd, 50, "how many to list")
	cmd.Flags().StringVar(&application, "application", "", "only this application")
	cmd.Flags().BoolVar(&all, "all", false, "not only the newest of each")
	output.add(cmd)
	return cmd
}

func newDeliveryShowCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "show <project> <commit>",
		Short:   "Show what came of a commit, with all findings",
		Example: "  tidelock delivery show team/delivery $(git rev-parse HEAD)",
		Args:    arguments("<project>", "<commit>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			// A branch or a short name is as good as the commit.
			found, err := call[struct {
				ID string `json:"id"`
			}](cmd.Context(), c, http.MethodGet, at("projects/%s/repository/commits/%s", args[0], args[1]), nil)
			if err != nil {
				return err
			}
			commit := found.value.ID
			query := struct {
				Commit string `url:"commit"`
			}{commit}
			builds, err := list[buildRow](cmd.Context(), c, at("projects/%s/deliveries", args[0]), query, 1000)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, rawOf(builds))
			}
			if len(builds) == 0 {
				env.warnf("commit %s changed no application, or was not packaged yet", short(commit))
			}
			for _, item := range builds {
				b := item.value
				fmt.Fprintf(env.stdout, "%s %s on %s\n", plain(b.name()), b.Status, plain(shortRef(b.Ref)))
				if b.Digest != "" {
					fmt.Fprintf(env.stdout, "  %s@%s\n  tags: %s\n", plain(b.Image), plain(b.Digest), plain(orDash(strings.Join(b.Tags, ", "))))
				}
				for _, f := range b.Findings {
					fmt.Fprintf(env.stdout, "  %s: %s\n", f.Level, plain(f.String()))
				}
			}
			return nil
		},
	}
	output.add(cmd)
	return cmd
}

func newDeliveryCheckCommand(env *environment) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "check [directory]",
		Short: "Package a working tree as the server would, and say what it would find",
		Long: `Read .tidelock/delivery.yaml of a working tree, the current directory by
default, and build, check and pack every application as the server would, were
all of it committed. Nothing is pushed and no server is asked. It fails when an
application would be refused.`,
		Example: "  tidelock delivery check\n  tidelock delivery check ./delivery -o json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			directory := "."
			if len(args) > 0 {
				directory = args[0]
			}
			result, err := checkDelivery(cmd.Context(), directory)
			if err != nil {
				return err
			}
			if err := output.print(env.stdout, result); err != nil {
				return err
			}
			if n := result.refused(); n > 0 {
				return fmt.Errorf("%d of %d would not be published", n, len(result))
			}
			return nil
		},
	}
	output.add(cmd)
	return cmd
}

// A checkedRow is what would come of an application.
type checkedRow struct {
	Application string          `json:"application"`
	Refused     bool            `json:"refused"`
	Layer       tidelock.Digest `json:"layer,omitempty"`
	Size        int             `json:"size"`
	Findings    []findingRow    `json:"findings"`
}

type checked []checkedRow

func (c checked) refused() (n int) {
	for _, row := range c {
		if row.Refused {
			n++
		}
	}
	return n
}

func (c checked) table(w io.Writer) error {
	for _, row := range c {
		state := "good"
		if row.Refused {
			state = "refused"
		}
		fmt.Fprintf(w, "%s: %s", plain(cmp.Or(row.Application, delivery.ConfigPath)), state)
		if row.Layer != "" {
			fmt.Fprintf(w, ", layer %s of %d bytes", row.Layer, row.Size)
		}
		fmt.Fprintln(w)
		for _, f := range row.Findings {
			if _, err := fmt.Fprintf(w, "  %s: %s\n", f.Level, plain(f.String())); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkDelivery(ctx context.Context, directory string) (_ checked, err error) {
	tree, err := delivery.OpenDir(directory)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	settings, findings, err := delivery.ReadConfig(tree)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return nil, fmt.Errorf("%s has no %s; name the applications there", directory, delivery.ConfigPath)
	}
	if err != nil {
		return nil, err
	}
	if len(findings) > 0 {
		return checked{{Refused: true, Findings: findingRows(findings)}}, nil
	}
	var result checked
	for _, app := range settings.Applications {
		made, err := delivery.Make(ctx, tree, app)
		if err != nil {
			return nil, err
		}
		result = append(result, checkedRow{
			Application: app.Name, Refused: made.Refused(), Layer: made.Layer.Digest, Size: len(made.Layer.Content), Findings: findingRows(made.Findings),
		})
	}
	return result, nil
}

func findingRows(findings []tidelock.Finding) []findingRow {
	rows := []findingRow{}
	for _, f := range findings {
		level := "fail"
		if f.Warning {
			level = "warn"
		}
		rows = append(rows, findingRow{Check: f.Check, Level: level, Path: f.Path, Line: f.Line, Message: f.Message})
	}
	return rows
}
