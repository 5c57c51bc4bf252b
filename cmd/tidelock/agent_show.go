package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
)

// An agentStatus is what our own route tells of an agent.
type agentStatus struct {
	Connected   bool `json:"connected"`
	Connections []struct {
		Instance          string     `json:"instance"`
		Version           string     `json:"version"`
		PodNamespace      string     `json:"pod_namespace"`
		PodName           string     `json:"pod_name"`
		KubernetesVersion string     `json:"kubernetes_version"`
		Leader            bool       `json:"leader"`
		ConnectedAt       *time.Time `json:"connected_at"`
		LastSeenAt        *time.Time `json:"last_seen_at"`
	} `json:"connections"`
	Configuration struct {
		Commit     string     `json:"commit"`
		GoodCommit string     `json:"good_commit"`
		Error      string     `json:"error"`
		Warnings   []string   `json:"warnings"`
		CheckedAt  *time.Time `json:"checked_at"`
	} `json:"configuration"`
}

func (s agentStatus) state() string {
	if s.Connected {
		return "connected"
	}
	return "not connected"
}

func newAgentListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "list [<project>]",
		Short:   "List agents and whether they are connected",
		Long:    "List the agents of a configuration project or, without one, of all projects whose agents you may see.",
		Example: "  tidelock agent list\n  tidelock agent list team/infra",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return misusef("%q takes one project at most", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			agents, err := listAgents(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			type row struct {
				Agent  json.RawMessage `json:"agent"`
				Status json.RawMessage `json:"status"`
			}
			rows := []row{}
			t := newTable(io.Discard)
			if !output.json() {
				t = newTable(env.stdout, "ID", "AGENT", "STATE", "REPLICAS", "VERSION")
			}
			for _, a := range agents {
				status, err := call[agentStatus](cmd.Context(), c, http.MethodGet, agentPath(a.value)+"/status", nil)
				if err != nil {
					return err
				}
				rows = append(rows, row{a.raw, status.raw})
				version := ""
				for _, connection := range status.value.Connections {
					version = connection.Version
				}
				t.row(fmt.Sprint(a.value.ID), agentName(a.value), status.value.state(), fmt.Sprint(len(status.value.Connections)), orDash(version))
			}
			if output.json() {
				return printJSON(env.stdout, rows)
			}
			return t.flush()
		},
	}
	output.add(cmd)
	return cmd
}

func agentName(a gitlab.Agent) string { return a.ConfigProject.PathWithNamespace + "/" + a.Name }

// listAgents asks one project or, without a name, each that may be seen.
func listAgents(ctx context.Context, c *connection, args []string) ([]answer[gitlab.Agent], error) {
	if len(args) == 1 {
		return list[gitlab.Agent](ctx, c, at("projects/%s/cluster_agents", args[0]), nil, 0)
	}
	projects, err := list[gitlab.Project](ctx, c, "projects", nil, 0)
	if err != nil {
		return nil, err
	}
	var all []answer[gitlab.Agent]
	for _, p := range projects {
		agents, err := list[gitlab.Agent](ctx, c, fmt.Sprintf("projects/%d/cluster_agents", p.value.ID), nil, 0)
		switch kind := tidelock.KindOf(err); {
		case kind == tidelock.Denied || kind == tidelock.NotFound:
			continue // its agents are not for the caller
		case err != nil:
			return nil, err
		}
		all = append(all, agents...)
	}
	return all, nil
}

func newAgentShowCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "show <project>/<agent>",
		Short: "Show an agent's connections, configuration and sources",
		Long: `Show an agent's connections, what is wrong with its configuration, and for
each Flux source that lies under the forge's URLs the revision it should have
(a commit, or the digest of an artifact), the one that Flux has, and how far the
newest came. The exit code is 3 while the agent is not connected.`,
		Example: "  tidelock agent show team/infra/production",
		Args:    arguments("<project>/<agent>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			view, err := readAgent(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if output.json() {
				err = printJSON(env.stdout, map[string]any{
					"agent": view.agent.raw, "status": view.status.raw,
					"tokens": rawOf(view.tokens), "grants": rawOf(view.grants), "sources": rawOf(view.sources),
				})
			} else {
				err = view.print(env.stdout)
			}
			if err == nil && !view.status.value.Connected {
				err = tidelock.Errorf(tidelock.Unavailable, `agent %s is not connected; see the log of "tidelock agent run" in its cluster`, agentName(view.agent.value))
			}
			return err
		},
	}
	output.add(cmd)
	return cmd
}

// An agentView is all that "agent show" tells.
type agentView struct {
	agent   answer[gitlab.Agent]
	status  answer[agentStatus]
	tokens  []answer[gitlab.AgentToken]
	grants  []answer[grantRow]
	sources []answer[agentSourceRow]
}

// An agentSourceRow is one of an agent's sources as our own route tells it.
type agentSourceRow struct {
	Source   string     `json:"source"`
	Ref      string     `json:"ref"`
	Wanted   string     `json:"wanted"`
	Digest   string     `json:"digest"`
	Revision string     `json:"revision"`
	State    string     `json:"state"`
	Message  string     `json:"message"`
	Since    *time.Time `json:"since"`
}

// wanted is the ref and its head, as far as there are any.
func (s agentSourceRow) wanted() string {
	head := short(cmp.Or(s.Digest, s.Wanted))
	switch {
	case s.Ref == "":
		return orDash(head)
	case head == "":
		return shortRef(s.Ref)
	}
	return shortRef(s.Ref) + "@" + head
}

// has is what Flux has of it: a commit, a digest, or the version of a chart.
func (s agentSourceRow) has() string {
	revision := tidelock.ParseRevision(tidelock.SourceID(s.Source).Kind(), s.Revision)
	return orDash(cmp.Or(short(string(revision.Commit)), short(string(revision.Digest)), revision.Version))
}

func readAgent(ctx context.Context, c *connection, reference string) (v agentView, err error) {
	if v.agent, err = findAgent(ctx, c, reference); err != nil {
		return v, err
	}
	path := agentPath(v.agent.value)
	v.status, err = call[agentStatus](ctx, c, http.MethodGet, path+"/status", nil)
	if err != nil {
		return v, err
	}
	if v.tokens, err = list[gitlab.AgentToken](ctx, c, path+"/tokens", nil, 0); err != nil {
		return v, err
	}
	if v.grants, err = list[grantRow](ctx, c, path+"/grants", nil, 0); err != nil {
		return v, err
	}
	v.sources, err = list[agentSourceRow](ctx, c, path+"/sources", nil, 0)
	return v, err
}

func (v agentView) print(w io.Writer) error {
	agent, status := v.agent.value, v.status.value
	head := newTable(w)
	head.row("Agent", agentName(agent))
	head.row("ID", fmt.Sprint(agent.ID))
	head.row("State", status.state())
	tokens := []string{}
	for _, t := range v.tokens {
		tokens = append(tokens, fmt.Sprintf("%d (%s)", t.value.ID, t.value.Name))
	}
	head.row("Tokens", orDash(strings.Join(tokens, ", ")))
	granted := []string{}
	for _, g := range v.grants {
		granted = append(granted, g.value.Project)
	}
	head.row("Granted", orDash(strings.Join(granted, ", ")))
	head.row("Configuration", status.configuration())
	for _, warning := range status.Configuration.Warnings {
		head.row("", "warning: "+warning)
	}
	err := head.flush()

	if len(status.Connections) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "REPLICA", "ROLE", "VERSION", "KUBERNETES", "CONNECTED", "SEEN")
		for _, c := range status.Connections {
			name := c.Instance
			if c.PodName != "" {
				name = c.PodNamespace + "/" + c.PodName
			}
			role := "standby"
			if c.Leader {
				role = "leader"
			}
			t.row(name, role, orDash(c.Version), orDash(c.KubernetesVersion), ago(c.ConnectedAt), ago(c.LastSeenAt))
		}
		err = errors.Join(err, t.flush())
	}
	if len(v.sources) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "SOURCE", "WANTED", "FLUX HAS", "STATE", "SINCE", "MESSAGE")
		for _, s := range v.sources {
			row := s.value
			t.row(row.Source, row.wanted(), row.has(), row.State, ago(row.Since), row.Message)
		}
		err = errors.Join(err, t.flush())
	}
	return err
}

// configuration says in a line which configuration is in force.
func (s agentStatus) configuration() string {
	c := s.Configuration
	inForce := "the empty one is in force"
	if c.GoodCommit != "" {
		inForce = "that of " + short(c.GoodCommit) + " is in force"
	}
	switch {
	case c.Error != "":
		return fmt.Sprintf("error at %s: %s; %s", short(c.Commit), c.Error, inForce)
	case c.CheckedAt == nil:
		return "not read yet"
	case c.GoodCommit == "":
		return "empty"
	}
	return "good, of " + short(c.GoodCommit)
}
