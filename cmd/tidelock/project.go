package main

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	gitlab "gitlab.com/gitlab-org/api/client-go"
)

func newProjectCommand(env *environment) *cobra.Command {
	cmd := parent("project", "Create and look at projects", "A project is one Git repository and what belongs to it.")
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newProjectListCommand(env, &source), newProjectCreateCommand(env, &source), newProjectShowCommand(env, &source))
	return cmd
}

func newProjectListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var search string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the projects you may see",
		Example: "  tidelock project list\n  tidelock project list -o json",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			query := &gitlab.ListProjectsOptions{OrderBy: gitlab.Ptr("id"), Sort: gitlab.Ptr("asc")}
			if search != "" {
				query.Search = &search
			}
			projects, err := list[gitlab.Project](cmd.Context(), c, "projects", query, 0)
			if err != nil {
				return err
			}
			return printList(env, output, projects, []string{"ID", "PROJECT", "VISIBILITY", "DEFAULT BRANCH"}, func(p gitlab.Project) []string {
				return []string{fmt.Sprint(p.ID), p.PathWithNamespace, string(p.Visibility), orDash(p.DefaultBranch)}
			})
		},
	}
	cmd.Flags().StringVar(&search, "search", "", "only those with this in their name or path")
	output.add(cmd)
	return cmd
}

func newProjectCreateCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var visibility, branch, description string
	cmd := &cobra.Command{
		Use:   "create <group>/<name>",
		Short: "Create a project and its empty repository",
		Long:  "Create a project and its empty repository. Without a group it belongs to you.",
		Example: `  tidelock project create team/site --visibility public
  git clone "$(tidelock project create team/site -o json | jq -r .http_url_to_repo)"`,
		Args: arguments("<group>/<name>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			group, name := "", strings.Trim(args[0], "/")
			if i := strings.LastIndex(name, "/"); i >= 0 {
				group, name = name[:i], name[i+1:]
			}
			body := &gitlab.CreateProjectOptions{
				Name: &name, Path: &name,
				Visibility: gitlab.Ptr(gitlab.VisibilityValue(visibility)),
			}
			if branch != "" {
				body.DefaultBranch = &branch
			}
			if description != "" {
				body.Description = &description
			}
			if group != "" {
				namespace, err := call[gitlab.Namespace](cmd.Context(), c, http.MethodGet, at("namespaces/%s", group), nil)
				if err != nil {
					return fmt.Errorf(`find group %q: %w; create it with "tidelock group create %s"`, group, err, group)
				}
				body.NamespaceID = &namespace.value.ID
			}
			project, err := call[gitlab.Project](cmd.Context(), c, http.MethodPost, "projects", body)
			if err != nil {
				return err
			}
			return printProject(env, output, project)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&visibility, "visibility", "private", "private, internal or public")
	flags.StringVar(&branch, "default-branch", "", `default branch (default "main")`)
	flags.StringVar(&description, "description", "", "a line that says what it is")
	output.add(cmd)
	return cmd
}

func newProjectShowCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "show <project>",
		Short:   "Show a project, by path or id",
		Example: "  tidelock project show team/site",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			project, err := call[gitlab.Project](cmd.Context(), c, http.MethodGet, at("projects/%s", args[0]), nil)
			if err != nil {
				return fmt.Errorf("project %q: %w", args[0], err)
			}
			return printProject(env, output, project)
		},
	}
	output.add(cmd)
	return cmd
}

func printProject(env *environment, output outputFlag, project answer[gitlab.Project]) error {
	if output.json() {
		return printJSON(env.stdout, project.raw)
	}
	p := project.value
	t := newTable(env.stdout)
	t.row("Project", p.PathWithNamespace)
	t.row("ID", fmt.Sprint(p.ID))
	t.row("Visibility", string(p.Visibility))
	t.row("Default branch", orDash(p.DefaultBranch))
	t.row("Clone", p.HTTPURLToRepo)
	if p.Description != "" {
		t.row("Description", p.Description)
	}
	return t.flush()
}
