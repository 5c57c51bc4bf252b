package main

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

func newAuditCommand(env *environment) *cobra.Command {
	cmd := parent("audit", "Read the audit log", `
The audit log tells of every change of who may do what: who made it, from
where, and what it was. Nothing changes or removes what it holds.`)
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newAuditListCommand(env, &source))
	return cmd
}

// An auditRow is an event of the log.
type auditRow struct {
	ID        int64     `json:"id"`
	AuthorID  int64     `json:"author_id"`
	CreatedAt time.Time `json:"created_at"`
	EventName string    `json:"event_name"`
	Details   struct {
		Author  string `json:"author_name"`
		From    string `json:"ip_address"`
		Path    string `json:"entity_path"`
		Subject string `json:"target_details"`
		Detail  string `json:"detail"`
	} `json:"details"`
}

// who made a change: the server itself has neither a name nor an id.
func (r auditRow) who() string {
	switch {
	case r.Details.Author != "":
		return r.Details.Author
	case r.AuthorID != 0:
		return strconv.FormatInt(r.AuthorID, 10)
	}
	return "-"
}

// auditQuery is what the API is asked for.
type auditQuery struct {
	CreatedAfter string `url:"created_after,omitempty"`
}

func newAuditListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var project, group, since string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List changes of who may do what, newest first",
		Example: `  tidelock audit list
  tidelock audit list --project team/site --since 24h
  tidelock audit list --group team --since 2030-01-31 -o json`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			after, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			path := "audit_events"
			switch {
			case project != "":
				path = at("projects/%s/audit_events", project)
			case group != "":
				path = at("groups/%s/audit_events", group)
			}
			if limit < 0 {
				return misusef("--limit: %d is less than 0", limit)
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			events, err := list[auditRow](cmd.Context(), c, path, &auditQuery{CreatedAfter: after}, limit)
			if err != nil {
				return err
			}
			return printList(env, output, events, []string{"TIME", "WHO", "FROM", "WHAT", "IN", "SUBJECT", "DETAIL"}, func(e auditRow) []string {
				d := e.Details
				return []string{e.CreatedAt.UTC().Format(time.RFC3339), e.who(), orDash(d.From), e.EventName, orDash(d.Path), orDash(d.Subject), orDash(d.Detail)}
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&project, "project", "", "only what was changed of this project (for maintainers)")
	flags.StringVar(&group, "group", "", "only what was changed of this group (for owners)")
	flags.StringVar(&since, "since", "", "only what is newer: a duration like 24h, a date, or a time like 2030-01-31T08:00:00Z")
	flags.IntVar(&limit, "limit", 100, "how many at most; 0 is all")
	cmd.MarkFlagsMutuallyExclusive("project", "group")
	output.add(cmd)
	return cmd
}

// parseSince reads a time, or how long ago it was; "" is none.
func parseSince(text string, now time.Time) (string, error) {
	if text == "" {
		return "", nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago).UTC().Format(time.RFC3339Nano), nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC().Format(time.RFC3339Nano), nil
		}
	}
	return "", misusef("--since: %q is neither a duration like 24h, a date like 2030-12-31 nor a time like 2030-12-31T08:00:00Z", text)
}
