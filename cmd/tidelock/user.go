package main

import (
	"fmt"
	"net/http"
	"net/mail"

	"github.com/spf13/cobra"
	gitlab "gitlab.com/gitlab-org/api/client-go"
)

func newUserCommand(env *environment) *cobra.Command {
	cmd := parent("user", "Create, list and block users", "Users are people; the bots behind project and group tokens are made with these.")
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newUserListCommand(env, &source), newUserCreateCommand(env, &source),
		newUserBlockCommand(env, &source, "block", "Refuse all that a user holds, such as tokens and keys (for administrators)"),
		newUserBlockCommand(env, &source, "unblock", "Take a user's tokens and keys again (for administrators)"))
	return cmd
}

func newUserListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List users",
		Example: "  tidelock user list",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			users, err := list[gitlab.User](cmd.Context(), c, "users", nil, 0)
			if err != nil {
				return err
			}
			return printList(env, output, users, []string{"ID", "USERNAME", "NAME", "STATE"}, func(u gitlab.User) []string {
				return []string{fmt.Sprint(u.ID), u.Username, u.Name, u.State}
			})
		},
	}
	output.add(cmd)
	return cmd
}

func newUserCreateCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var name, email string
	var admin bool
	cmd := &cobra.Command{
		Use:     "create <username>",
		Short:   "Create a user (for administrators)",
		Example: "  tidelock user create ada --name 'Ada Lovelace' --email ada@forge.example",
		Args:    arguments("<username>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if email == "" {
				return misusef("give the user's address with --email")
			}
			if _, err := mail.ParseAddress(email); err != nil {
				return misusef("--email: %q is not an address", email)
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			if name == "" {
				name = args[0]
			}
			body := &gitlab.CreateUserOptions{Username: &args[0], Name: &name, Email: &email, Admin: &admin, SkipConfirmation: gitlab.Ptr(true)}
			user, err := call[gitlab.User](cmd.Context(), c, http.MethodPost, "users", body)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, user.raw)
			}
			fmt.Fprintf(env.stdout, "%s (id %d)\n", plain(user.value.Username), user.value.ID)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "name that people read (default: the username)")
	flags.StringVar(&email, "email", "", "address (required)")
	flags.BoolVar(&admin, "admin", false, "make it an administrator")
	output.add(cmd)
	return cmd
}

// newUserBlockCommand blocks or unblocks, by the API's word for it.
func newUserBlockCommand(env *environment, source *sourceFlags, word, short string) *cobra.Command {
	return &cobra.Command{
		Use:     word + " <username>",
		Short:   short,
		Example: "  tidelock user " + word + " ada",
		Args:    arguments("<username>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			user, err := findUser(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return send(cmd.Context(), c, http.MethodPost, fmt.Sprintf("users/%d/%s", user.ID, word), nil)
		},
	}
}
