package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newNotifyCommand(env *environment) *cobra.Command {
	cmd := parent("notify", "Have a chat told of syncs that failed or recovered", `
A project may have one incoming webhook of Slack, or of a chat that takes the
same messages, such as Mattermost. It is told when a commit fails in a cluster,
once for each cause, and when that is over.`)
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newNotifySetCommand(env, &source), newNotifyShowCommand(env, &source), newNotifyDeleteCommand(env, &source))
	return cmd
}

// A notifyRow is whom a project tells, without the URL.
type notifyRow struct {
	Pipeline   bool       `json:"pipeline_events"`
	Deployment bool       `json:"deployment_events"`
	Alert      string     `json:"alert_status"`
	Until      *time.Time `json:"disabled_until"`
	LastAt     time.Time  `json:"last_attempt_at"`
	LastStatus int        `json:"last_response_status"`
	LastError  string     `json:"last_error"`
	Properties struct {
		Username   string `json:"username"`
		Channel    string `json:"channel"`
		OnlyBroken bool   `json:"notify_only_broken_pipelines"`
		Branches   string `json:"branches_to_be_notified"`
	} `json:"properties"`
}

func (n notifyRow) tells() string {
	switch {
	case !n.Pipeline && !n.Deployment:
		return "nothing"
	case n.Properties.OnlyBroken:
		return "syncs that failed"
	}
	return "syncs that failed or recovered"
}

// last is how the newest message went.
func (n notifyRow) last() string {
	switch {
	case n.LastAt.IsZero():
		return "-"
	case n.LastError != "":
		return fmt.Sprintf("%s: %s", n.LastAt.UTC().Format(time.RFC3339), n.LastError)
	}
	return fmt.Sprintf("%s: answered with %d", n.LastAt.UTC().Format(time.RFC3339), n.LastStatus)
}

func (n notifyRow) print(env *environment) error {
	_, err := fmt.Fprintf(env.stdout, "tells:    %s\nbranches: %s\nchannel:  %s\nas:       %s\nstate:    %s\nlast:     %s\n",
		n.tells(), plain(strings.ReplaceAll(n.Properties.Branches, "_", " ")), plain(orDash(n.Properties.Channel)),
		plain(orDash(n.Properties.Username)), plain(callState(n.Alert, n.Until)), plain(n.last()))
	return err
}

func newNotifySetCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var urlFile, channel, username, branches string
	var onlyFailed bool
	cmd := &cobra.Command{
		Use:   "set <project>",
		Short: "Say which chat is told, and of what",
		Long: `Say which chat is told, and of what. Whoever knows the URL of an incoming
webhook may write to its channel: it is read from a file or from stdin, and never
shown again. Flags that are not given leave what was set before.`,
		Example: `  tidelock notify set team/site --url-file slack-url
  pass chat/deploys | tidelock notify set team/site --url-file - --channel '#deploys'
  tidelock notify set team/site --only-failed --branches default`,
		Args: arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{}
			if urlFile != "" {
				url, err := readInput(env, urlFile)
				if err != nil {
					return fmt.Errorf("read the URL: %w", err)
				}
				body["webhook"] = url
			}
			for flag, field := range map[string]any{
				"channel": &channel, "username": &username, "branches": &branches, "only-failed": &onlyFailed,
			} {
				if cmd.Flags().Changed(flag) {
					body[notifyFields[flag]] = field
				}
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			saved, err := call[notifyRow](cmd.Context(), c, http.MethodPut, at("projects/%s/integrations/slack", args[0]), body)
			if err != nil || !output.json() {
				return err
			}
			return printJSON(env.stdout, saved.raw)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&urlFile, "url-file", "", "file, or - for stdin, with the URL of the incoming webhook")
	flags.StringVar(&channel, "channel", "", "where messages go, if the chat lets the sender choose")
	flags.StringVar(&username, "username", "", "whom messages are from, likewise")
	flags.StringVar(&branches, "branches", "all", "all, default, protected, or default_and_protected")
	flags.BoolVar(&onlyFailed, "only-failed", false, "do not tell of what recovered")
	output.add(cmd)
	return cmd
}

// notifyFields are the names that GitLab has for flags.
var notifyFields = map[string]string{
	"channel": "channel", "username": "username", "branches": "branches_to_be_notified", "only-failed": "notify_only_broken_pipelines",
}

func newNotifyShowCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "show <project>",
		Short:   "Show of what a chat is told, and how the newest message went",
		Example: "  tidelock notify show team/site",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			found, err := call[notifyRow](cmd.Context(), c, http.MethodGet, at("projects/%s/integrations/slack", args[0]), nil)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, found.raw)
			}
			return found.value.print(env)
		},
	}
	output.add(cmd)
	return cmd
}

func newNotifyDeleteCommand(env *environment, source *sourceFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "delete <project>",
		Short:   "Tell no chat any more, and forget its URL",
		Example: "  tidelock notify delete team/site",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			return send(cmd.Context(), c, http.MethodDelete, at("projects/%s/integrations/slack", args[0]), nil)
		},
	}
}
