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

func newImageCommand(env *environment) *cobra.Command {
	cmd := parent("image", "List and clean up what is in the registry", `
An image is a repository of the registry, at or below the path of a project. It
holds artifacts of any type, and tags that point at them.`)
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(
		newImageListCommand(env, &source), newImageTagsCommand(env, &source), newImageDeleteCommand(env, &source),
		newImageRulesCommand(env, &source), newImageRetentionCommand(env, &source), newImageQuotaCommand(env, &source),
		newImageCollectCommand(env, &source),
	)
	return cmd
}

// An imageRow is an image in a list.
type imageRow struct {
	ID        int64     `json:"id"`
	Name      string    `json:"name"`
	Path      string    `json:"path"`
	TagsCount int       `json:"tags_count"`
	CreatedAt time.Time `json:"created_at"`
}

func imagesOf(cmd *cobra.Command, c *connection, project string) ([]answer[imageRow], error) {
	query := struct {
		TagsCount bool `url:"tags_count"`
	}{true}
	return list[imageRow](cmd.Context(), c, at("projects/%s/registry/repositories", project), query, 0)
}

// findImage is the image that a user names: by the path below its project, ""
// for the project's own.
func findImage(cmd *cobra.Command, c *connection, project, name string) (imageRow, error) {
	images, err := imagesOf(cmd, c, project)
	if err != nil {
		return imageRow{}, err
	}
	for _, i := range images {
		if i.value.Name == name {
			return i.value, nil
		}
	}
	if name == "" {
		return imageRow{}, fmt.Errorf("project %s has no image of its own; list those it has with \"tidelock image list %s\"", project, project)
	}
	return imageRow{}, fmt.Errorf("project %s has no image %q; list those it has with \"tidelock image list %s\"", project, name, project)
}

func newImageListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "list <project>",
		Short:   "List the images of a project, and what they take",
		Example: "  tidelock image list team/site",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			images, err := imagesOf(cmd, c, args[0])
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, rawOf(images))
			}
			usage, err := call[usageRow](cmd.Context(), c, http.MethodGet, at("projects/%s/registry/usage", args[0]), nil)
			if err != nil {
				return err
			}
			t := newTable(env.stdout, "IMAGE", "TAGS", "CREATED")
			for _, i := range images {
				t.row(i.value.Path, strconv.Itoa(i.value.TagsCount), ago(&i.value.CreatedAt))
			}
			if err := t.flush(); err != nil {
				return err
			}
			fmt.Fprintln(env.stderr, usage.value)
			return nil
		},
	}
	output.add(cmd)
	return cmd
}

// A usageRow is what the images of a project take.
type usageRow struct {
	Used  int64  `json:"used_bytes"`
	Quota *int64 `json:"quota_bytes"`
}

func (u usageRow) String() string {
	if u.Quota == nil {
		return fmt.Sprintf("%d bytes used, without a limit", u.Used)
	}
	return fmt.Sprintf("%d of %d bytes used", u.Used, *u.Quota)
}

// A tagRow is a tag of an image with what it points at.
type tagRow struct {
	Name      string    `json:"name"`
	Digest    string    `json:"digest"`
	CreatedAt time.Time `json:"created_at"`
	TotalSize int64     `json:"total_size"`
}

func newImageTagsCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var limit limitFlag
	cmd := &cobra.Command{
		Use:     "tags <project> [image]",
		Short:   "List the tags of an image by name",
		Example: "  tidelock image tags team/site\n  tidelock image tags team/site web/api",
		Args:    argumentsFrom(1, "<project>", "[image]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			image, err := findImage(cmd, c, args[0], second(args))
			if err != nil {
				return err
			}
			tags := at("projects/%s/registry/repositories/%d/tags", args[0], image.ID)
			names, err := list[tagRow](cmd.Context(), c, tags, nil, int(limit))
			if err != nil {
				return err
			}
			details := make([]answer[tagRow], len(names))
			for n, tag := range names {
				if details[n], err = call[tagRow](cmd.Context(), c, http.MethodGet, tags+at("/%s", tag.value.Name), nil); err != nil {
					return err
				}
			}
			return printList(env, output, details, []string{"TAG", "DIGEST", "BYTES", "MOVED"}, func(t tagRow) []string {
				return []string{t.Name, t.Digest, strconv.FormatInt(t.TotalSize, 10), ago(&t.CreatedAt)}
			})
		},
	}
	limit.add(cmd, 100, "how many to list")
	output.add(cmd)
	return cmd
}

func second(args []string) string {
	if len(args) < 2 {
		return ""
	}
	return args[1]
}

func newImageDeleteCommand(env *environment, source *sourceFlags) *cobra.Command {
	var tags []string
	var all bool
	cmd := &cobra.Command{
		Use:   "delete <project> [image]",
		Short: "Delete tags of an image, or the image with all of them",
		Long: `Delete tags of an image, or the whole image. What the tags pointed at stays
until it is collected. Tags that a rule of the project keeps are not deleted.`,
		Example: "  tidelock image delete team/site web --tag old,older\n  tidelock image delete team/site web --all",
		Args:    argumentsFrom(1, "<project>", "[image]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(tags) == 0) == !all {
				return misusef("give either --tag or --all")
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			image, err := findImage(cmd, c, args[0], second(args))
			if err != nil {
				return err
			}
			path := at("projects/%s/registry/repositories/%d", args[0], image.ID)
			if all {
				return send(cmd.Context(), c, http.MethodDelete, path, nil)
			}
			for _, tag := range tags {
				if err := send(cmd.Context(), c, http.MethodDelete, path+at("/tags/%s", tag), nil); err != nil {
					return fmt.Errorf("delete tag %s: %w", tag, err)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&tags, "tag", nil, "a tag to delete; may be repeated")
	cmd.Flags().BoolVar(&all, "all", false, "delete the image with all its tags")
	return cmd
}

// A ruleRow is a rule about tags.
type ruleRow struct {
	ID        int64  `json:"id"`
	Pattern   string `json:"tag_name_pattern"`
	Push      string `json:"minimum_access_level_for_push"`
	Delete    string `json:"minimum_access_level_for_delete"`
	Immutable bool   `json:"immutable"`
}

func newImageRulesCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var immutable []string
	var remove []int64
	cmd := &cobra.Command{
		Use:   "rules <project>",
		Short: "List, add and remove the rules about tags of a project's images",
		Long: `List the rules about tags of a project's images, after adding and removing
those that are named. What an immutable rule matches can be made once, and then
neither moved nor deleted. A project begins with such a rule for versions.`,
		Example: "  tidelock image rules team/site\n  tidelock image rules team/site --add-immutable '^release-' --remove 7",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			rules := at("projects/%s/registry/protection/tag/rules", args[0])
			for _, pattern := range immutable {
				if err := send(cmd.Context(), c, http.MethodPost, rules, map[string]any{"tag_name_pattern": pattern}); err != nil {
					return err
				}
			}
			for _, id := range remove {
				if err := send(cmd.Context(), c, http.MethodDelete, fmt.Sprintf("%s/%d", rules, id), nil); err != nil {
					return err
				}
			}
			all, err := list[ruleRow](cmd.Context(), c, rules, nil, 0)
			if err != nil {
				return err
			}
			return printList(env, output, all, []string{"ID", "TAGS", "PUSH", "DELETE"}, func(r ruleRow) []string {
				push, deletes := r.Push, r.Delete
				if r.Immutable {
					push, deletes = "once", "nobody"
				}
				return []string{strconv.FormatInt(r.ID, 10), r.Pattern, push, deletes}
			})
		},
	}
	cmd.Flags().StringArrayVar(&immutable, "add-immutable", nil, "make tags immutable that match this regular expression; may be repeated")
	cmd.Flags().Int64SliceVar(&remove, "remove", nil, "remove the rule with this id; may be repeated")
	output.add(cmd)
	return cmd
}

// A fateRow is what retention does with a tag.
type fateRow struct {
	Image  string `json:"image"`
	Tag    string `json:"tag"`
	Remove bool   `json:"remove"`
	Reason string `json:"reason"`
}

func newImageRetentionCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var dry, apply, enable, disable bool
	var every, older, keep, remove string
	var newest int
	cmd := &cobra.Command{
		Use:   "retention <project>",
		Short: "Say which tags of a project are removed by and by, and remove them",
		Long: `Change the retention of a project's images, and apply it now. Of the tags of
an image that --remove matches and --keep does not, the newest stay and so do
those that moved lately; "latest", what a tag rule protects and what a cluster
uses stay anyway. With --enable the server applies it now and then.`,
		Example: `  tidelock image retention team/site --keep-newest 5 --older-than 14d --remove 'main-.*' --dry-run
  tidelock image retention team/site --enable --every 7d
  tidelock image retention team/site --apply`,
		Args: arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if enable && disable || dry && apply {
				return misusef("--enable and --disable, and --dry-run and --apply, exclude each other")
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			policy := map[string]any{}
			for flag, field := range map[string]struct {
				name  string
				value any
			}{
				"enable": {"enabled", true}, "disable": {"enabled", false}, "every": {"cadence", every}, "older-than": {"older_than", older},
				"keep": {"name_regex_keep", keep}, "remove": {"name_regex_delete", remove}, "keep-newest": {"keep_n", newest},
			} {
				if cmd.Flags().Changed(flag) {
					policy[field.name] = field.value
				}
			}
			if len(policy) > 0 {
				body := map[string]any{"container_expiration_policy_attributes": policy}
				if err := send(cmd.Context(), c, http.MethodPut, at("projects/%s", args[0]), body); err != nil {
					return err
				}
			}
			if !apply && !dry {
				return showRetention(cmd, env, c, output, args[0])
			}
			fates, err := call[[]fateRow](cmd.Context(), c, http.MethodPost, at("projects/%s/registry/retention", args[0]), map[string]any{"dry_run": dry})
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, fates.raw)
			}
			t := newTable(env.stdout, "IMAGE", "TAG", "", "WHY")
			removed := 0
			for _, f := range fates.value {
				does := "stays"
				if f.Remove {
					does = "goes"
					removed++
				}
				t.row(f.Image, f.Tag, does, f.Reason)
			}
			if err := t.flush(); err != nil {
				return err
			}
			if dry {
				fmt.Fprintf(env.stderr, "%d of %d tags would go\n", removed, len(fates.value))
			} else {
				fmt.Fprintf(env.stderr, "%d of %d tags are gone\n", removed, len(fates.value))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would go, and why")
	cmd.Flags().BoolVar(&apply, "apply", false, "apply it now")
	cmd.Flags().BoolVar(&enable, "enable", false, "let the server apply it now and then")
	cmd.Flags().BoolVar(&disable, "disable", false, "let the server no longer do so")
	cmd.Flags().StringVar(&every, "every", "", "how often the server does so, such as 1d")
	cmd.Flags().IntVar(&newest, "keep-newest", 0, "how many of each image stay for being new")
	cmd.Flags().StringVar(&older, "older-than", "", "how long a tag stays after it moved, such as 90d or 12h")
	cmd.Flags().StringVar(&keep, "keep", "", "a regular expression of tags that stay")
	cmd.Flags().StringVar(&remove, "remove", "", "a regular expression of tags that may go")
	output.add(cmd)
	return cmd
}

// A retentionRow is the retention of a project in GitLab's words.
type retentionRow struct {
	Policy struct {
		Cadence   string `json:"cadence"`
		Enabled   bool   `json:"enabled"`
		KeepN     int    `json:"keep_n"`
		OlderThan string `json:"older_than"`
		Delete    string `json:"name_regex_delete"`
		Keep      string `json:"name_regex_keep"`
	} `json:"container_expiration_policy"`
}

func showRetention(cmd *cobra.Command, env *environment, c *connection, output outputFlag, project string) error {
	shown, err := call[retentionRow](cmd.Context(), c, http.MethodGet, at("projects/%s", project), nil)
	if err != nil {
		return err
	}
	p := shown.value.Policy
	if output.json() {
		return printJSON(env.stdout, p)
	}
	applied := "never"
	if p.Enabled {
		applied = "every " + p.Cadence
	}
	t := newTable(env.stdout)
	t.row("applied", applied)
	t.row("may go", p.Delete)
	t.row("stay", orDash(p.Keep))
	t.row("newest that stay", strconv.Itoa(p.KeepN))
	t.row("stay for", orDash(p.OlderThan))
	return t.flush()
}

func newImageQuotaCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "quota <project> [bytes]",
		Short: "Show what the images of a project take, or say what they may",
		Long: `Show how many bytes the images of a project take, each content once. As an
administrator, say how many they may: 0 is the server's default, "none" no limit.`,
		Example: "  tidelock image quota team/site\n  tidelock image quota team/site 10000000000",
		Args:    argumentsFrom(1, "<project>", "[bytes]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			method, path, body := http.MethodGet, "usage", any(nil)
			if len(args) == 2 {
				bytes, err := int64(-1), error(nil)
				if args[1] != "none" {
					bytes, err = strconv.ParseInt(args[1], 10, 64)
				}
				if err != nil {
					return misusef("%q is neither a number of bytes nor \"none\"", args[1])
				}
				method, path, body = http.MethodPut, "quota", map[string]any{"bytes": bytes}
			}
			usage, err := call[usageRow](cmd.Context(), c, method, at("projects/%s/registry/", args[0])+path, body)
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, usage.raw)
			}
			fmt.Fprintln(env.stdout, usage.value)
			return nil
		},
	}
	output.add(cmd)
	return cmd
}

// A collectedRow is what a collection of garbage removed.
type collectedRow struct {
	Artifacts []struct {
		Digest string `json:"digest"`
		Type   string `json:"artifact_type"`
		Size   int64  `json:"size"`
	} `json:"artifacts"`
	Blobs      int   `json:"blobs"`
	Strays     int   `json:"strays"`
	Images     int   `json:"images"`
	FreedBlobs int   `json:"freed_blobs"`
	FreedBytes int64 `json:"freed_bytes"`
}

func newImageCollectCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var dry bool
	cmd := &cobra.Command{
		Use:   "collect [project]",
		Short: "Remove what no tag leads to any more",
		Long: `Remove artifacts that nothing leads to, and blobs that no artifact names, from
the images of a project, or of all projects; the latter also frees their space,
and is for administrators. The server does so by itself now and then. What was
pushed lately stays, and pushes go on meanwhile.`,
		Example: "  tidelock image collect --dry-run\n  tidelock image collect team/site",
		Args:    argumentsFrom(0, "[project]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			path := "registry/collect"
			if len(args) == 1 {
				path = at("projects/%s/registry/collect", args[0])
			}
			done, err := call[collectedRow](cmd.Context(), c, http.MethodPost, path, map[string]any{"dry_run": dry})
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, done.raw)
			}
			found := done.value
			if len(found.Artifacts) > 0 {
				t := newTable(env.stdout, "ARTIFACT", "TYPE", "BYTES")
				for _, a := range found.Artifacts {
					t.row(a.Digest, orDash(a.Type), strconv.FormatInt(a.Size, 10))
				}
				if err := t.flush(); err != nil {
					return err
				}
			}
			words := slices.DeleteFunc([]string{
				counted(len(found.Artifacts), "artifact"), counted(found.Blobs, "blob"), counted(found.Strays, "stray"), counted(found.Images, "empty image"),
			}, func(s string) bool { return s == "" })
			verb := "removed"
			if dry {
				verb = "would remove"
			}
			if len(words) == 0 {
				words = []string{"nothing"}
			}
			fmt.Fprintf(env.stderr, "%s %s; %d bytes are free again\n", verb, strings.Join(words, ", "), found.FreedBytes)
			return nil
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would go")
	output.add(cmd)
	return cmd
}

// counted is a number of things, or "" for none.
func counted(n int, noun string) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// argumentsFrom is arguments of which only the first ones are needed.
func argumentsFrom(needed int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= needed && len(args) <= len(names) {
			return nil
		}
		return arguments(names...)(cmd, args)
	}
}
