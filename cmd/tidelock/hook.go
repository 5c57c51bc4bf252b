package main

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newHookCommand(env *environment) *cobra.Command {
	cmd := parent("hook", "Add, list and delete webhooks, and see what was sent", `
A webhook is a URL that the server calls when something happens in a project,
such as that of Flux's Receiver. What could not be delivered is tried again for
about an hour.`)
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newHookAddCommand(env, &source), newHookListCommand(env, &source),
		newHookDeleteCommand(env, &source), newHookEventsCommand(env, &source))
	return cmd
}

// hookKinds are what a hook may be called for.
var hookKinds = []string{"push", "tag_push", "pipeline", "deployment"}

// A hookRow is a hook in a list.
type hookRow struct {
	ID         int64      `json:"id"`
	URL        string     `json:"url"`
	Push       bool       `json:"push_events"`
	TagPush    bool       `json:"tag_push_events"`
	Pipeline   bool       `json:"pipeline_events"`
	Deployment bool       `json:"deployment_events"`
	Branches   string     `json:"push_events_branch_filter"`
	Alert      string     `json:"alert_status"`
	Until      *time.Time `json:"disabled_until"`
}

// callState says in words of people whether calls are made. GitLab's for it
// are "executable" and "temporarily_disabled".
func callState(alert string, until *time.Time) string {
	switch {
	case alert == "executable":
		return "active"
	case until != nil:
		return fmt.Sprintf("paused until %s after failures", until.UTC().Format(time.RFC3339))
	}
	return alert
}

func (h hookRow) kinds() string {
	var words []string
	for i, wants := range []bool{h.Push, h.TagPush, h.Pipeline, h.Deployment} {
		if wants {
			words = append(words, hookKinds[i])
		}
	}
	return orDash(strings.Join(words, ","))
}

func newHookAddCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var kinds []string
	var name, branches, tokenFile string
	var skipVerify bool
	cmd := &cobra.Command{
		Use:   "add <project> <url>",
		Short: "Have a URL called when something happens in a project",
		Example: `  tidelock hook add team/site https://flux.example/hook/0123 --token-file secret
  tidelock hook add team/site https://chat.example/x --on pipeline,deployment
  openssl rand -hex 16 | tee secret | tidelock hook add team/site https://ci.example --token-file -`,
		Args: arguments("<project>", "<url>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{
				"url": args[1], "name": name, "push_events_branch_filter": branches, "enable_ssl_verification": !skipVerify,
			}
			for _, kind := range kinds {
				if !slices.Contains(hookKinds, kind) {
					return misusef("--on: %q is not one of %s", kind, strings.Join(hookKinds, ", "))
				}
			}
			for _, kind := range hookKinds {
				body[kind+"_events"] = slices.Contains(kinds, kind)
			}
			if tokenFile != "" {
				token, err := readInput(env, tokenFile)
				if err != nil {
					return fmt.Errorf("read the token: %w", err)
				}
				body["token"] = token
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			hook, err := call[hookRow](cmd.Context(), c, http.MethodPost, at("projects/%s/hooks", args[0]), body)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, hook.raw)
			}
			_, err = fmt.Fprintf(env.stdout, "%s (id %d)\n", plain(hook.value.URL), hook.value.ID)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&kinds, "on", []string{"push"}, "what it is called for: "+strings.Join(hookKinds, ", "))
	flags.StringVar(&name, "name", "", "what people call it")
	flags.StringVar(&branches, "branches", "", `only pushes to these branches, such as "release/*"`)
	flags.StringVar(&tokenFile, "token-file", "", "file, or - for stdin, with the token that the receiver compares")
	flags.BoolVar(&skipVerify, "skip-verify", false, "take any certificate of the receiver")
	output.add(cmd)
	return cmd
}

func newHookListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "list <project>",
		Short:   "List the webhooks of a project",
		Example: "  tidelock hook list team/site",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			hooks, err := list[hookRow](cmd.Context(), c, at("projects/%s/hooks", args[0]), nil, 0)
			if err != nil {
				return err
			}
			return printList(env, output, hooks, []string{"ID", "URL", "ON", "BRANCHES", "STATE"}, func(h hookRow) []string {
				return []string{strconv.FormatInt(h.ID, 10), h.URL, h.kinds(), orDash(h.Branches), callState(h.Alert, h.Until)}
			})
		},
	}
	output.add(cmd)
	return cmd
}

func newHookDeleteCommand(env *environment, source *sourceFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "delete <project> <id>",
		Short:   "Delete a webhook, and what waited for it",
		Example: "  tidelock hook delete team/site 3",
		Args:    arguments("<project>", "<id>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := hookPath(args)
			if err != nil {
				return err
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			return send(cmd.Context(), c, http.MethodDelete, path, nil)
		},
	}
}

// hookPath is where the hook is that a project and an id name.
func hookPath(args []string) (string, error) {
	id, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return "", misusef("%q is not the id of a webhook; see %q", args[1], "tidelock hook list "+args[0])
	}
	return at("projects/%s/hooks/%d", args[0], id), nil
}

// A hookEventRow is a delivery that was tried.
type hookEventRow struct {
	ID        int64     `json:"id"`
	Trigger   string    `json:"trigger"`
	Status    string    `json:"response_status"`
	State     string    `json:"state"`
	Attempts  int       `json:"attempts"`
	CreatedAt time.Time `json:"created_at"`
	Error     string    `json:"error"`
}

func newHookEventsCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var limit int
	cmd := &cobra.Command{
		Use:     "events <project> <id>",
		Short:   "List what was sent to a webhook in the last days, newest first",
		Example: "  tidelock hook events team/site 3\n  tidelock hook events team/site 3 --limit 1 -o json",
		Args:    arguments("<project>", "<id>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := hookPath(args)
			if err != nil {
				return err
			}
			if limit < 0 {
				return misusef("--limit: %d is less than 0", limit)
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			events, err := list[hookEventRow](cmd.Context(), c, path+"/events", nil, limit)
			if err != nil {
				return err
			}
			return printList(env, output, events, []string{"ID", "TIME", "ON", "STATE", "TRIES", "ANSWER", "ERROR"}, func(e hookEventRow) []string {
				return []string{
					strconv.FormatInt(e.ID, 10), e.CreatedAt.UTC().Format(time.RFC3339), strings.TrimSuffix(e.Trigger, "_hooks"),
					e.State, strconv.Itoa(e.Attempts), e.Status, orDash(e.Error),
				}
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 20, "how many at most; 0 is all")
	output.add(cmd)
	return cmd
}
