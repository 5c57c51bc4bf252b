package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"tidelock.dev"
	"tidelock.dev/internal/signing"
)

// A taggedRow is a tag and what it points at.
type taggedRow struct {
	Tag      string          `json:"tag"`
	Digest   tidelock.Digest `json:"digest"`
	Type     string          `json:"artifact_type"`
	Revision string          `json:"revision"`
	Source   string          `json:"source"`
	Created  string          `json:"created"`
	Size     int64           `json:"size"`
	Signed   bool            `json:"signed"`
}

func newArtifactListCommand(env *environment, flags *artifactFlags) *cobra.Command {
	var output outputFlag
	var limit limitFlag
	cmd := &cobra.Command{
		Use:   "list <url>",
		Short: "List the tags of an image, and what they point at",
		Long: `List the tags of an image, and what they point at. "signed" says that there
are signatures, not that they are good: see "tidelock artifact verify".`,
		Example: "  tidelock artifact list oci://forge.example/team/shop/web",
		Args:    arguments("<url>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			image, err := flags.open(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			rows, left, err := image.list(cmd.Context(), int(limit))
			if err != nil {
				return err
			}
			if left > 0 {
				env.warnf("%d more tags are not shown; see --limit", left)
			}
			if output.json() {
				return printJSON(env.stdout, rows)
			}
			t := newTable(env.stdout, "TAG", "DIGEST", "REVISION", "CREATED", "SIZE", "SIGNED")
			for _, r := range rows {
				signed := "no"
				if r.Signed {
					signed = "yes"
				}
				t.row(r.Tag, short(string(r.Digest)), orDash(r.Revision), orDash(r.Created), bytesOf(r.Size), signed)
			}
			return t.flush()
		},
	}
	limit.add(cmd, 100, "how many tags to look at, of the last in order of name")
	output.add(cmd)
	return cmd
}

// attachment reports whether a tag is one under which cosign keeps what is
// attached to an artifact.
func attachment(tag string) bool {
	for _, suffix := range []string{".sig", ".att", ".sbom"} {
		if base, ok := strings.CutSuffix(tag, suffix); ok {
			if _, ok := signing.SubjectOf(base + ".sig"); ok {
				return true
			}
		}
	}
	return false
}

func (i *remoteImage) list(ctx context.Context, limit int) (rows []taggedRow, left int, err error) {
	all, err := remote.List(i.ref.Context(), i.options...)
	if err != nil {
		return nil, 0, i.explain(err)
	}
	tags := slices.DeleteFunc(slices.Clone(all), attachment)
	slices.Sort(tags)
	slices.Reverse(tags)
	if len(tags) > limit {
		left, tags = len(tags)-limit, tags[:limit]
	}
	rows = make([]taggedRow, len(tags))
	group, _ := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for n, tag := range tags {
		group.Go(func() error {
			at := *i
			at.ref = i.ref.Context().Tag(tag)
			a, err := at.fetch()
			if tidelock.KindOf(err) == tidelock.NotFound {
				return nil // it was removed meanwhile
			}
			if err != nil {
				return err
			}
			rows[n] = taggedRow{
				Tag: tag, Digest: a.Digest, Type: a.Type, Size: a.TotalSize(),
				Revision: a.Annotations[tidelock.AnnotationRevision], Source: a.Annotations[tidelock.AnnotationSource],
				Created: a.Annotations[tidelock.AnnotationCreated], Signed: slices.Contains(all, signing.Tag(a.Digest)),
			}
			return nil
		})
	}
	err = group.Wait()
	return slices.DeleteFunc(rows, func(r taggedRow) bool { return r.Tag == "" }), left, err
}

func newArtifactTagCommand(env *environment, flags *artifactFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "tag <url> <tag>...",
		Short:   "Give an artifact further tags",
		Example: "  tidelock artifact tag oci://forge.example/team/shop/web:1.2.0 latest stable",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return misusef("%q takes an artifact and at least one tag; see %q", cmd.CommandPath(), cmd.CommandPath()+" --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			image, err := flags.open(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			a, err := image.fetch()
			if err != nil {
				return err
			}
			for _, tag := range args[1:] {
				if strings.ContainsAny(tag, ":/@") || tag == "" {
					return misusef("%q cannot be a tag", tag)
				}
			}
			var failed error
			for _, tag := range args[1:] {
				err := remote.Put(image.ref.Context().Tag(tag), rawManifest{types.MediaType(a.MediaType), a.body}, image.options...)
				if err != nil {
					failed = errors.Join(failed, fmt.Errorf("tag %s: %w", tag, image.explain(err)))
					continue
				}
				fmt.Fprintf(env.stdout, "oci://%s:%s@%s\n", image.image(), tag, a.Digest)
			}
			return failed
		},
	}
}
