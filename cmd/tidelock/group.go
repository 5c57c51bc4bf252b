package main

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	gitlab "gitlab.com/gitlab-org/api/client-go"
)

func newGroupCommand(env *environment) *cobra.Command {
	cmd := parent("group", "Create and list groups", "A group holds projects and further groups; its members are members of everything below.")
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newGroupListCommand(env, &source), newGroupCreateCommand(env, &source))
	return cmd
}

func newGroupListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the groups you may see",
		Example: "  tidelock group list",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			groups, err := list[gitlab.Group](cmd.Context(), c, "groups", nil, 0)
			if err != nil {
				return err
			}
			return printList(env, output, groups, []string{"ID", "GROUP", "VISIBILITY"}, func(g gitlab.Group) []string {
				return []string{fmt.Sprint(g.ID), g.FullPath, string(g.Visibility)}
			})
		},
	}
	output.add(cmd)
	return cmd
}

func newGroupCreateCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var visibility string
	cmd := &cobra.Command{
		Use:     "create <group>",
		Short:   "Create a group, also inside another",
		Example: "  tidelock group create team --visibility public\n  tidelock group create team/web --visibility public",
		Args:    arguments("<group>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			above, name := "", strings.Trim(args[0], "/")
			if i := strings.LastIndex(name, "/"); i >= 0 {
				above, name = name[:i], name[i+1:]
			}
			body := &gitlab.CreateGroupOptions{Name: &name, Path: &name, Visibility: gitlab.Ptr(gitlab.VisibilityValue(visibility))}
			if above != "" {
				group, err := call[gitlab.Group](cmd.Context(), c, http.MethodGet, at("groups/%s", above), nil)
				if err != nil {
					return fmt.Errorf("find group %q: %w", above, err)
				}
				body.ParentID = &group.value.ID
			}
			group, err := call[gitlab.Group](cmd.Context(), c, http.MethodPost, "groups", body)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, group.raw)
			}
			fmt.Fprintf(env.stdout, "%s (id %d)\n", plain(group.value.FullPath), group.value.ID)
			return nil
		},
	}
	cmd.Flags().StringVar(&visibility, "visibility", "private", "private, internal or public")
	output.add(cmd)
	return cmd
}
