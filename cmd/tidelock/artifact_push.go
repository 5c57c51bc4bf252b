package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/spf13/cobra"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
)

// pushOptions say what an artifact is made of. What is empty is read from the
// working tree.
type pushOptions struct {
	source, revision, created string
	annotations               []string
	ignore                    []string
}

func newArtifactPushCommand(env *environment, flags *artifactFlags) *cobra.Command {
	var output outputFlag
	var o pushOptions
	cmd := &cobra.Command{
		Use:   "push <path> <url>",
		Short: "Package a folder and push it",
		Long: `Package a folder, or one file, and push it under a tag. The same files of the
same commit give the same digest, wherever and whenever they are packaged, in
the same layer that the server makes of them.

From where they come is read from the Git working tree: its remote, without
credentials, and the commit as <branch>@sha1:<40 hex digits>, which is what
commit statuses need. Files named .sourceignore hold further ignore rules.`,
		Example: `  tidelock artifact push ./deploy oci://forge.example/team/shop/web:latest
  tidelock artifact push ./deploy oci://forge.example/team/shop/web:1.2.0 \
    --source "$CI_PROJECT_URL" --revision "$CI_COMMIT_BRANCH@sha1:$CI_COMMIT_SHA"`,
		Args: arguments("<path>", "<url>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			image, err := flags.open(cmd.Context(), env, args[1])
			if err != nil {
				return err
			}
			tag, ok := image.ref.(name.Tag)
			if !ok {
				return misusef("%s names a digest; push to a tag, such as %s:latest", args[1], "oci://"+image.image())
			}
			from, err := o.from(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			packed, err := o.pack(args[0], from)
			if err != nil {
				return err
			}
			if err := image.push(env, tag, packed); err != nil {
				return image.explain(err)
			}
			return output.print(env.stdout, pushed{
				URL: image.String(), Digest: packed.Digest, Size: len(packed.Layer), Source: from.URL, Revision: from.Revision, Created: from.Created.UTC(),
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.source, "source", "", "URL of the repository (default: the remote of the working tree)")
	f.StringVar(&o.revision, "revision", "", "such as main@sha1:<commit> (default: that of the working tree)")
	f.StringVar(&o.created, "created", "", "RFC 3339 time (default: that of the commit, or now outside a working tree)")
	f.StringArrayVar(&o.annotations, "annotations", nil, "further annotation, as name=value; may be repeated")
	f.StringSliceVar(&o.ignore, "ignore-paths", nil, "patterns, as of .gitignore, of what is left out")
	output.add(cmd)
	return cmd
}

// A pushed is what a push answers.
type pushed struct {
	URL      string          `json:"url"`
	Digest   tidelock.Digest `json:"digest"`
	Size     int             `json:"size"`
	Source   string          `json:"source"`
	Revision string          `json:"revision"`
	Created  time.Time       `json:"created"`
}

func (p pushed) table(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s@%s (%s)\n", plain(p.URL), p.Digest, plain(p.Revision))
	return err
}

func (o pushOptions) pack(path string, from artifact.Source) (artifact.Image, error) {
	files, err := artifact.Collect(path, o.ignore)
	if err != nil {
		return artifact.Image{}, err
	}
	layer, err := artifact.Pack(files)
	if err != nil {
		return artifact.Image{}, err
	}
	return artifact.New(layer, from)
}

// push uploads what is missing, and the manifest last.
func (i *remoteImage) push(env *environment, tag name.Tag, packed artifact.Image) error {
	for _, blob := range []struct {
		content   []byte
		mediaType types.MediaType
	}{{packed.Config, tidelock.MediaTypeFluxConfig}, {packed.Layer, tidelock.MediaTypeFluxContent}} {
		layer := static.NewLayer(blob.content, blob.mediaType)
		if err := remote.WriteLayer(tag.Context(), layer, i.options...); err != nil {
			return err
		}
		fmt.Fprintf(env.stderr, "pushed %s, %s\n", short(string(tidelock.DigestOf(blob.content))), bytesOf(int64(len(blob.content))))
	}
	return remote.Put(tag, rawManifest{tidelock.MediaTypeManifest, packed.Manifest}, i.options...)
}

// A rawManifest is pushed as it is.
type rawManifest struct {
	mediaType types.MediaType
	body      []byte
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.body, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }

// bytesOf writes a size for people.
func bytesOf(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// shortCommit finds revisions that name less than a whole commit.
var shortCommit = regexp.MustCompile(`sha1:[0-9a-f]{0,39}$`)

// from says where the artifact comes from.
func (o pushOptions) from(ctx context.Context, env *environment, path string) (artifact.Source, error) {
	from := artifact.Source{URL: o.source, Revision: o.revision, Extra: map[string]string{}}
	for _, annotation := range o.annotations {
		key, value, ok := strings.Cut(annotation, "=")
		if !ok || key == "" {
			return from, misusef("--annotations: %q is not name=value", annotation)
		}
		from.Extra[key] = value
	}
	tree := workingTree{path: path}
	if from.URL == "" {
		from.URL = tree.remote(ctx)
	}
	commit := tree.git(ctx, "rev-parse", "--verify", "--quiet", "HEAD")
	if from.Revision == "" && commit != "" {
		from.Revision = artifact.Revision(tree.branch(ctx, env), tidelock.CommitID(commit))
		if tree.git(ctx, "status", "--porcelain", "--", ".") != "" {
			env.warnf("%s has changes that are not committed: %s does not say what is pushed", path, from.Revision)
		}
	}
	if from.URL == "" || from.Revision == "" {
		return from, misusef("%s is in no Git working tree with a remote and a commit; say --source and --revision", path)
	}
	if shortCommit.MatchString(from.Revision) {
		return from, misusef("--revision: %q does not name the whole commit, which statuses need; give all 40 digits", from.Revision)
	}
	created, err := o.createdAt(tree.git(ctx, "show", "--no-patch", "--format=%cI", "HEAD"), commit != "" && strings.HasSuffix(from.Revision, commit))
	from.Created = created
	return from, err
}

// createdAt is the time that was given, or that of the commit that the
// revision names, or now.
func (o pushOptions) createdAt(ofCommit string, named bool) (time.Time, error) {
	if o.created != "" {
		at, err := time.Parse(time.RFC3339, o.created)
		if err != nil {
			return at, misusef("--created: %q is not a time such as 2006-01-02T15:04:05Z", o.created)
		}
		return at, nil
	}
	if at, err := time.Parse(time.RFC3339, ofCommit); err == nil && named {
		return at, nil
	}
	return time.Now(), nil
}

// A workingTree is one of Git around a path. What it does not know is "".
type workingTree struct{ path string }

func (t workingTree) git(ctx context.Context, args ...string) string {
	dir := t.path
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		dir = filepath.Dir(dir)
	}
	out, err := exec.CommandContext(ctx, "git", append([]string{"-C", dir}, args...)...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// branch is the one that is checked out; a CI/CD job has a commit checked out
// and the branch or tag in its environment.
func (t workingTree) branch(ctx context.Context, env *environment) string {
	if branch := t.git(ctx, "symbolic-ref", "--quiet", "--short", "HEAD"); branch != "" {
		return branch
	}
	return env.getenv("CI_COMMIT_REF_NAME")
}

// remote is the URL of the remote that the branch follows, or of origin, or of
// the only one, without credentials.
func (t workingTree) remote(ctx context.Context) string {
	remotes := strings.Fields(t.git(ctx, "remote"))
	name := t.git(ctx, "config", "--get", "branch."+t.git(ctx, "symbolic-ref", "--quiet", "--short", "HEAD")+".remote")
	if name == "" || name == "." {
		name = "origin"
		if len(remotes) == 1 {
			name = remotes[0]
		}
	}
	return withoutCredentials(t.git(ctx, "config", "--get", "remote."+name+".url"))
}

func withoutCredentials(remote string) string {
	u, err := url.Parse(remote)
	if err != nil || u.Host == "" {
		if strings.Contains(remote, "://") {
			return "" // it may hold a password, wherever that is
		}
		return remote // of scp's form, or a folder
	}
	if u.Scheme == "http" || u.Scheme == "https" {
		u.User = nil
	} else if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	return u.String()
}
