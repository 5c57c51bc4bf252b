package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newKeyCommand(env *environment) *cobra.Command {
	cmd := parent("key", "Add, list and delete SSH keys", `
SSH keys open Git over SSH. A person's key acts as the person. A deploy key,
which --project or --group makes, belongs to nobody: it reads one project, or
all projects of a group, and pushes with --can-push.`)
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newKeyAddCommand(env, &source), newKeyListCommand(env, &source), newKeyDeleteCommand(env, &source))
	return cmd
}

// keyPlace says whose keys are meant: by default the caller's own.
type keyPlace struct{ user, project, group string }

func (p *keyPlace) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&p.user, "user", "", "keys of this user")
	flags.StringVar(&p.project, "project", "", "deploy keys of this project")
	flags.StringVar(&p.group, "group", "", "deploy keys of this group")
	cmd.MarkFlagsMutuallyExclusive("user", "project", "group")
}

func (p *keyPlace) deploy() bool { return p.project != "" || p.group != "" }

// path is the collection in the API.
func (p *keyPlace) path(ctx context.Context, c *connection) (string, error) {
	switch {
	case p.project != "":
		return at("projects/%s/deploy_keys", p.project), nil
	case p.group != "":
		return at("groups/%s/deploy_keys", p.group), nil
	case p.user != "":
		user, err := findUser(ctx, c, p.user)
		return fmt.Sprintf("users/%d/keys", user.ID), err
	}
	return "user/keys", nil
}

// A keyRow is a key of any kind in a list.
type keyRow struct {
	ID         int64      `json:"id"`
	Title      string     `json:"title"`
	Key        string     `json:"key"`
	CanPush    bool       `json:"can_push"`
	ExpiresAt  *time.Time `json:"expires_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
}

// A newKeyBody is what a key is made from.
type newKeyBody struct {
	Title     string `json:"title"`
	Key       string `json:"key"`
	CanPush   bool   `json:"can_push,omitempty"`
	ExpiresAt string `json:"expires_at,omitempty"`
}

func newKeyAddCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var place keyPlace
	var body newKeyBody
	cmd := &cobra.Command{
		Use:   "add <title> <file>",
		Short: "Add the public key in a file, or on stdin for -",
		Example: `  tidelock key add laptop ~/.ssh/id_ed25519.pub
  tidelock key add flux flux.pub --project team/site
  ssh-add -L | head -n1 | tidelock key add agent -`,
		Args: arguments("<title>", "<file>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if body.CanPush && !place.deploy() {
				return misusef("--can-push goes with --project or --group; a person's key may what the person may")
			}
			if err := checkExpires(body.ExpiresAt); err != nil {
				return err
			}
			line, err := readPublicKey(env, args[1])
			if err != nil {
				return err
			}
			body.Title, body.Key = args[0], line
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			path, err := place.path(cmd.Context(), c)
			if err != nil {
				return err
			}
			key, err := call[keyRow](cmd.Context(), c, http.MethodPost, path, body)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, key.raw)
			}
			_, err = fmt.Fprintf(env.stdout, "%s (id %d)\n", plain(key.value.Title), key.value.ID)
			return err
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&body.CanPush, "can-push", false, "let a deploy key push too")
	flags.StringVar(&body.ExpiresAt, "expires", "", "day on which it ends (default: never)")
	place.add(cmd)
	output.add(cmd)
	return cmd
}

// readPublicKey reads a file that ends in .pub, and never lets a private key
// leave the machine.
func readPublicKey(env *environment, name string) (string, error) {
	text, err := readInput(env, name)
	if err != nil {
		return "", fmt.Errorf("read the key: %w", err)
	}
	if strings.Contains(text, "PRIVATE KEY") {
		return "", misusef("%s is a private key, which stays where it is; give the file that ends in .pub", name)
	}
	return text, nil
}

// maxInput is more than any key or token takes.
const maxInput = 64 << 10

// readInput reads a short text from a file, or from stdin for -, without the
// space around it.
func readInput(env *environment, name string) (string, error) {
	in := env.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxInput))
	return strings.TrimSpace(string(text)), err
}

func newKeyListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var place keyPlace
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List SSH keys",
		Example: "  tidelock key list\n  tidelock key list --project team/site",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			path, err := place.path(cmd.Context(), c)
			if err != nil {
				return err
			}
			keys, err := list[keyRow](cmd.Context(), c, path, nil, 0)
			if err != nil {
				return err
			}
			return printList(env, output, keys, []string{"ID", "TITLE", "TYPE", "MAY", "EXPIRES", "LAST USED"}, func(k keyRow) []string {
				kind, _, _ := strings.Cut(k.Key, " ")
				may, expires := "what its owner may", "-"
				if place.deploy() {
					may = "read"
				}
				if k.CanPush {
					may = "read and push"
				}
				if k.ExpiresAt != nil {
					expires = k.ExpiresAt.Format(time.DateOnly)
				}
				return []string{strconv.FormatInt(k.ID, 10), k.Title, kind, may, expires, ago(k.LastUsedAt)}
			})
		},
	}
	place.add(cmd)
	output.add(cmd)
	return cmd
}

func newKeyDeleteCommand(env *environment, source *sourceFlags) *cobra.Command {
	var place keyPlace
	cmd := &cobra.Command{
		Use:     "delete <id>",
		Short:   "Delete an SSH key; its connections are cut within seconds",
		Example: "  tidelock key delete 12\n  tidelock key delete 7 --project team/site",
		Args:    arguments("<id>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return misusef("%q is not the id of a key; see %q", args[0], "tidelock key list")
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			path, err := place.path(cmd.Context(), c)
			if err != nil {
				return err
			}
			return send(cmd.Context(), c, http.MethodDelete, fmt.Sprintf("%s/%d", path, id), nil)
		},
	}
	place.add(cmd)
	return cmd
}
