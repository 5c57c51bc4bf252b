package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
	"tidelock.dev/internal/registry"
)

// A fetched is an artifact's manifest, as the registry gave it.
type fetched struct {
	tidelock.Artifact
	body []byte
}

// fetch reads the manifest. Its digest is that of the bytes, whatever the
// registry says.
func (i *remoteImage) fetch() (fetched, error) {
	d, err := remote.Get(i.ref, i.options...)
	if err != nil {
		return fetched{}, i.explain(err)
	}
	return parseFetched(string(d.MediaType), d.Manifest)
}

func parseFetched(mediaType string, body []byte) (fetched, error) {
	a, err := registry.ParseManifest(mediaType, body)
	if err != nil {
		return fetched{}, fmt.Errorf("read the manifest: %w", err)
	}
	a.Digest = tidelock.DigestOf(body)
	return fetched{a, body}, nil
}

func newArtifactPullCommand(env *environment, flags *artifactFlags) *cobra.Command {
	var output outputFlag
	var dir, layerType string
	cmd := &cobra.Command{
		Use:   "pull <url>",
		Short: "Pull an artifact and unpack it into a folder",
		Long: `Pull an artifact and unpack its first layer into a folder, which must be empty
or missing and gets all files or none. A layer with links, devices, paths that
lead outside or stand twice, or with more than it should, is refused.`,
		Example: `  tidelock artifact pull oci://forge.example/team/shop/web:latest --dir ./web
  tidelock artifact pull oci://forge.example/team/shop/web@sha256:… --dir ./web`,
		Args: arguments("<url>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir == "" {
				return misusef("name the folder to unpack into with --dir")
			}
			image, err := flags.open(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			a, err := image.fetch()
			if err != nil {
				return err
			}
			layer, err := a.layer(layerType)
			if err != nil {
				return fmt.Errorf("pull %s: %w", image, err)
			}
			fmt.Fprintf(env.stderr, "pulling %s, %s\n", short(string(layer.Digest)), bytesOf(layer.Size))
			content, err := image.blob(layer.Digest)
			if err != nil {
				return err
			}
			got, err := artifact.Unpack(content, layer, dir)
			content.Close()
			if err != nil {
				return image.explain(err)
			}
			return output.print(env.stdout, pulled{
				URL: image.String(), Digest: a.Digest, Dir: filepath.Clean(dir), Files: got.Files, Size: got.Size,
				Source: a.Annotations[tidelock.AnnotationSource], Revision: a.Annotations[tidelock.AnnotationRevision],
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "folder to unpack into, empty or missing (required)")
	f.StringVar(&layerType, "layer-media-type", "", "take the first layer of this type (default: the first layer)")
	output.add(cmd)
	return cmd
}

// layers are the parts but for the config.
func (f fetched) layers() ([]tidelock.Part, error) {
	var m struct {
		Layers []json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(f.body, &m); err != nil || len(m.Layers) == 0 || len(m.Layers) > len(f.Parts) {
		return nil, tidelock.Errorf(tidelock.Invalid, "it is an %s without layers, and holds nothing to unpack", f.MediaType)
	}
	return f.Parts[len(f.Parts)-len(m.Layers):], nil
}

func (f fetched) layer(mediaType string) (tidelock.Part, error) {
	layers, err := f.layers()
	if err != nil {
		return tidelock.Part{}, err
	}
	if mediaType == "" {
		return layers[0], nil
	}
	n := slices.IndexFunc(layers, func(p tidelock.Part) bool { return p.MediaType == mediaType })
	if n < 0 {
		return tidelock.Part{}, tidelock.Errorf(tidelock.NotFound, "it has no layer of type %s; the first is of %s", mediaType, layers[0].MediaType)
	}
	return layers[n], nil
}

// blob reads a part as it is stored.
func (i *remoteImage) blob(digest tidelock.Digest) (io.ReadCloser, error) {
	layer, err := remote.Layer(i.digest(digest), i.options...)
	if err != nil {
		return nil, i.explain(err)
	}
	content, err := layer.Compressed()
	return content, i.explain(err)
}

// A pulled is what a pull answers.
type pulled struct {
	URL      string          `json:"url"`
	Digest   tidelock.Digest `json:"digest"`
	Dir      string          `json:"dir"`
	Files    int             `json:"files"`
	Size     int64           `json:"size"`
	Source   string          `json:"source"`
	Revision string          `json:"revision"`
}

func (p pulled) table(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s: %s, %s, of %s (%s)\n", plain(p.Dir), cmp.Or(counted(p.Files, "file"), "no files"), bytesOf(p.Size), p.Digest, plain(orDash(p.Revision)))
	return err
}
