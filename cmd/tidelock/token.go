package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	gitlab "gitlab.com/gitlab-org/api/client-go"
)

func newTokenCommand(env *environment) *cobra.Command {
	cmd := parent("token", "Create, list, rotate and revoke access tokens", `
Access tokens open the API, Git and the registry. A personal token acts as its
user; a project or group token as a bot that is a member there; a deploy token
only reads the repositories of one project or group, pulls and pushes its images
or, with the scope api, says what became of their commits.`)
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newTokenCreateCommand(env, &source), newTokenListCommand(env, &source),
		newTokenRotateCommand(env, &source), newTokenRevokeCommand(env, &source))
	return cmd
}

// tokenPlace says whose tokens are meant: by default the caller's own.
type tokenPlace struct {
	user, project, group string
	deploy               bool
}

func (p *tokenPlace) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&p.user, "user", "", "personal tokens of this user (for administrators)")
	flags.StringVar(&p.project, "project", "", "tokens of this project")
	flags.StringVar(&p.group, "group", "", "tokens of this group")
	flags.BoolVar(&p.deploy, "deploy", false, "deploy tokens, with --project or --group")
	cmd.MarkFlagsMutuallyExclusive("user", "project", "group")
}

// path is the collection in the API, "" for personal tokens.
func (p *tokenPlace) path() (string, error) {
	kind := "access_tokens"
	if p.deploy {
		kind = "deploy_tokens"
	}
	switch {
	case p.project != "":
		return at("projects/%s/", p.project) + kind, nil
	case p.group != "":
		return at("groups/%s/", p.group) + kind, nil
	case p.deploy:
		return "", misusef("--deploy goes with --project or --group")
	}
	return "", nil
}

// findUser finds a user by name; "" is the caller.
func findUser(ctx context.Context, c *connection, username string) (gitlab.User, error) {
	if username == "" {
		me, err := call[gitlab.User](ctx, c, http.MethodGet, "user", nil)
		return me.value, err
	}
	users, err := list[gitlab.User](ctx, c, "users", &gitlab.ListUsersOptions{Username: &username}, 1)
	if err != nil {
		return gitlab.User{}, err
	}
	if len(users) == 0 {
		return gitlab.User{}, fmt.Errorf("there is no user %q", username)
	}
	return users[0].value, nil
}

var levels = map[string]int{"guest": 10, "planner": 15, "reporter": 20, "developer": 30, "maintainer": 40, "owner": 50}

// newTokenBody is what every kind of token is made from.
type newTokenBody struct {
	Name        string   `json:"name"`
	Scopes      []string `json:"scopes"`
	ExpiresAt   string   `json:"expires_at,omitempty"`
	AccessLevel int      `json:"access_level,omitempty"`
	Username    string   `json:"username,omitempty"`
}

// A newToken is the answer that holds the secret.
type newToken struct {
	ID    int64  `json:"id"`
	Token string `json:"token"`
}

func newTokenCreateCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var place tokenPlace
	var body newTokenBody
	var level, tokenFile string
	cmd := &cobra.Command{
		Use:   "create <name>",
		Short: "Create a token and print it; it is never shown again",
		Example: `  tidelock token create laptop --scope api
  tidelock token create ci --project team/site --scope write_repository --level developer
  tidelock token create flux --deploy --project team/site --scope read_repository`,
		Args: arguments("<name>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := place.path()
			if err != nil {
				return err
			}
			if err := checkExpires(body.ExpiresAt); err != nil {
				return err
			}
			if level != "" {
				number, ok := levels[strings.ToLower(level)]
				if !ok {
					return misusef("--level: %q is not guest, planner, reporter, developer, maintainer or owner", level)
				}
				body.AccessLevel = number
			}
			if len(body.Scopes) == 0 {
				return misusef("--scope: name at least one, such as api, read_api, read_repository or write_repository")
			}
			body.Name = args[0]
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			if path == "" {
				if path, err = personalTokenPath(cmd.Context(), c, place.user); err != nil {
					return err
				}
			}
			token, err := call[newToken](cmd.Context(), c, http.MethodPost, path, body)
			if err != nil {
				return err
			}
			return printSecret(env, output, tokenFile, token.value.Token, token.raw)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&body.Scopes, "scope", nil, "what it may be used for; may be given more than once")
	flags.StringVar(&body.ExpiresAt, "expires", "", "last day it is good (default: a year from now; deploy tokens: never)")
	flags.StringVar(&level, "level", "", `role of a project or group token (default "maintainer")`)
	flags.StringVar(&body.Username, "username", "", "user name of a deploy token")
	flags.StringVar(&tokenFile, "token-file", "", "write it to this file, for your eyes only, instead of printing it")
	place.add(cmd)
	output.add(cmd)
	return cmd
}

// personalTokenPath is where a user's token is made: by administrators for
// anybody with every scope, by others for themselves.
func personalTokenPath(ctx context.Context, c *connection, username string) (string, error) {
	user, err := findUser(ctx, c, username)
	if err != nil {
		return "", err
	}
	if username == "" && !user.IsAdmin {
		return "user/personal_access_tokens", nil
	}
	return fmt.Sprintf("users/%d/personal_access_tokens", user.ID), nil
}

// printSecret hands out what is shown once: to a file if one is named, else
// alone on stdout, so that a script can take it.
func printSecret(env *environment, output outputFlag, file, secret string, raw any) error {
	switch {
	case file != "":
		return writeSecretFile(file, []byte(secret+"\n"))
	case output.json():
		return printJSON(env.stdout, raw)
	}
	_, err := fmt.Fprintln(env.stdout, secret)
	return err
}

// A tokenRow is a token of any kind in a list.
type tokenRow struct {
	ID         int64      `json:"id"`
	Name       string     `json:"name"`
	Scopes     []string   `json:"scopes"`
	Revoked    bool       `json:"revoked"`
	Active     *bool      `json:"active"`
	Expired    *bool      `json:"expired"`
	ExpiresAt  string     `json:"expires_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
}

func (r tokenRow) state() string {
	switch {
	case r.Revoked:
		return "revoked"
	case r.Expired != nil && *r.Expired, r.Active != nil && !*r.Active:
		return "expired"
	}
	return "active"
}

func newTokenListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var place tokenPlace
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List tokens, without their secrets",
		Example: "  tidelock token list\n  tidelock token list --project team/site --deploy",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := place.path()
			if err != nil {
				return err
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			var query any
			if path == "" {
				user, err := findUser(cmd.Context(), c, place.user)
				if err != nil {
					return err
				}
				path, query = "personal_access_tokens", &gitlab.ListPersonalAccessTokensOptions{UserID: &user.ID}
			}
			tokens, err := list[tokenRow](cmd.Context(), c, path, query, 0)
			if err != nil {
				return err
			}
			return printList(env, output, tokens, []string{"ID", "NAME", "STATE", "SCOPES", "EXPIRES", "LAST USED"}, func(t tokenRow) []string {
				used := ago(t.LastUsedAt)
				if place.deploy {
					used = "-" // GitLab's shape does not tell
				}
				return []string{strconv.FormatInt(t.ID, 10), t.Name, t.state(), strings.Join(t.Scopes, ","), orDash(t.ExpiresAt), used}
			})
		},
	}
	place.add(cmd)
	output.add(cmd)
	return cmd
}

func checkExpires(text string) error {
	if text == "" {
		return nil
	}
	if _, err := time.Parse(time.DateOnly, text); err != nil {
		return misusef("--expires: %q is not a date like 2030-12-31", text)
	}
	return nil
}

func newTokenRotateCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var place tokenPlace
	var tokenFile string
	var body struct {
		ExpiresAt string `json:"expires_at,omitempty"`
	}
	cmd := &cobra.Command{
		Use:   "rotate <id>",
		Short: "Replace a token by a new one and print it; the old one ends at once",
		Long: `Replace a token by a new one with the same name, scopes and bot, and print it;
it is never shown again. The old one ends at once, and rotating it once more
ends the new one too: somebody may have stolen it. Deploy tokens cannot be
rotated; make a new one.

The word "self" stands for the token that the command itself uses.`,
		Example: `  tidelock token rotate 12 --expires 2030-12-31
  tidelock token rotate 7 --project team/site
  tidelock token rotate self --token-file new.token`,
		Args: arguments("<id>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := strconv.ParseInt(args[0], 10, 64); err != nil && args[0] != "self" {
				return misusef("%q is not the id of a token; see %q", args[0], "tidelock token list")
			}
			if place.deploy {
				return misusef("--deploy: a deploy token cannot be rotated; make a new one")
			}
			if err := checkExpires(body.ExpiresAt); err != nil {
				return err
			}
			path, err := place.path()
			if err != nil {
				return err
			}
			if path == "" {
				path = "personal_access_tokens"
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			token, err := call[newToken](cmd.Context(), c, http.MethodPost, fmt.Sprintf("%s/%s/rotate", path, args[0]), body)
			if err != nil {
				return err
			}
			return printSecret(env, output, tokenFile, token.value.Token, token.raw)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&body.ExpiresAt, "expires", "", "last day it is good (default: a week from now)")
	flags.StringVar(&tokenFile, "token-file", "", "write it to this file, for your eyes only, instead of printing it")
	place.add(cmd)
	output.add(cmd)
	return cmd
}

func newTokenRevokeCommand(env *environment, source *sourceFlags) *cobra.Command {
	var place tokenPlace
	cmd := &cobra.Command{
		Use:     "revoke <id>",
		Short:   "Revoke a token at once and for good",
		Example: "  tidelock token revoke 12\n  tidelock token revoke 7 --deploy --project team/site",
		Args:    arguments("<id>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return misusef("%q is not the id of a token; see %q", args[0], "tidelock token list")
			}
			path, err := place.path()
			if err != nil {
				return err
			}
			if path == "" {
				path = "personal_access_tokens"
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			return send(cmd.Context(), c, http.MethodDelete, fmt.Sprintf("%s/%d", path, id), nil)
		},
	}
	place.add(cmd)
	return cmd
}
