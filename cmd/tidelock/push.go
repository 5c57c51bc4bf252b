package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidelock.dev/internal/signing"
)

func newPushCommand(env *environment) *cobra.Command {
	cmd := parent("push", "Follow pushes", "A push is a set of refs that moved together, or an artifact that was taken into the registry; each can be followed to the clusters.")
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newPushListCommand(env, &source))
	return cmd
}

// A pushRow is a push as our own route tells it.
type pushRow struct {
	ID   int64     `json:"id"`
	At   time.Time `json:"at"`
	User *struct {
		Username string `json:"username"`
	} `json:"user"`
	Updates []struct {
		Ref    string `json:"ref"`
		New    string `json:"new"`
		Commit string `json:"commit"`
	} `json:"updates"`
	Artifact *struct {
		Image string `json:"image"`
		Tag   string `json:"tag"`
		New   string `json:"new"`
	} `json:"artifact"`
}

// what names the refs that moved, or the artifact.
func (p pushRow) what() string {
	if a := p.Artifact; a != nil {
		name := cmp.Or(a.Image, "an image that is gone")
		subject, signature := signing.SubjectOf(a.Tag)
		switch {
		case signature:
			name = "signature of " + name + "@" + short(string(subject))
		case a.Tag != "":
			name += ":" + a.Tag
		}
		switch {
		case a.New == "":
			return name + " deleted"
		case signature:
			return name // its own digest would be taken for the other
		}
		return name + "@" + short(a.New)
	}
	words := make([]string, len(p.Updates))
	for i, u := range p.Updates {
		words[i] = shortRef(u.Ref) + "@" + short(u.Commit)
		if u.New == "" {
			words[i] = shortRef(u.Ref) + " deleted"
		}
	}
	return strings.Join(words, ", ")
}

func shortRef(ref string) string {
	return strings.TrimPrefix(strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/")
}

// An announcementRow is one source's announcement as our own route tells it.
type announcementRow struct {
	AgentID     int64      `json:"agent_id"`
	Source      string     `json:"source"`
	Number      int64      `json:"number"`
	Ref         string     `json:"ref"`
	Commit      string     `json:"commit"`
	Digest      string     `json:"digest"`
	PushID      int64      `json:"push_id"`
	State       string     `json:"state"`
	Message     string     `json:"message"`
	AcceptedAt  *time.Time `json:"accepted_at"`
	SentAt      *time.Time `json:"sent_at"`
	AnnouncedAt *time.Time `json:"announced_at"`
	CalledAt    *time.Time `json:"called_at"`
	AnsweredAt  *time.Time `json:"answered_at"`
	HandledAt   *time.Time `json:"handled_at"`
	FetchedAt   *time.Time `json:"fetched_at"`
	Via         string     `json:"via"`
	Attempts    int        `json:"attempts"`
}

func newPushListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var limit limitFlag
	cmd := &cobra.Command{
		Use:     "list <project>",
		Short:   "List a project's pushes, newest first, and how far each came",
		Example: "  tidelock push list team/site",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			pushes, err := list[pushRow](cmd.Context(), c, at("projects/%s/pushes", args[0]), nil, int(limit))
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, rawOf(pushes))
			}
			// The announcements of the pushes shown are among the newest.
			announced, err := list[announcementRow](cmd.Context(), c, at("projects/%s/announcements", args[0]), nil, 10*int(limit))
			if err != nil {
				return err
			}
			states := map[int64]map[string]int{}
			for _, a := range announced {
				if states[a.value.PushID] == nil {
					states[a.value.PushID] = map[string]int{}
				}
				states[a.value.PushID][a.value.State]++
			}
			t := newTable(env.stdout, "ID", "WHEN", "BY", "WHAT", "SOURCES")
			for _, p := range pushes {
				by := "-"
				if p.value.User != nil {
					by = p.value.User.Username
				}
				t.row(fmt.Sprint(p.value.ID), ago(&p.value.At), by, p.value.what(), countStates(states[p.value.ID]))
			}
			return t.flush()
		},
	}
	limit.add(cmd, 20, "how many to list")
	output.add(cmd)
	return cmd
}

// countStates writes "2 converged, 1 failed".
func countStates(counts map[string]int) string {
	var words []string
	for _, state := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%d %s", counts[state], state))
	}
	return orDash(strings.Join(words, ", "))
}
