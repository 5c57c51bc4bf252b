package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/spf13/cobra"

	"tidelock.dev"
)

type benchRegistryOptions struct {
	rounds   int
	clients  int
	duration time.Duration
	large    int // MiB
}

func newBenchRegistryCommand(env *environment, source *sourceFlags) *cobra.Command {
	var opts benchRegistryOptions
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Measure pushes and pulls of artifacts beside plain distribution",
		Long: `Push artifacts and pull them again beside a plain distribution registry: the same
library that the forge keeps its blobs with, on the same disk, in this process,
over TLS, without accounts and without a record of what was pushed. The sides
take turns in every round, and the medians are compared; a ratio above 1 says
that the forge is faster. One client of each side keeps its connections and its
token.

Then many clients at once, each with connections and a token of its own, send a
mix of requests one after another for a while. No request may fail.

Without --url, --context and TIDELOCK_URL the bench starts a server of its own in
its own process, on a temporary folder; for a server that is named, plain
distribution is on another disk. It makes a group with its projects, and removes
it in the end.`,
		Example: `  tidelock bench registry
  tidelock bench registry --rounds 9 --clients 100 --duration 60s -o json`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.rounds < 1 || opts.clients < 1 || opts.large < 1 || opts.duration < time.Second {
				return misusef("--rounds, --clients and --large must be at least 1, --duration at least 1s")
			}
			result, err := benchRegistry(cmd.Context(), env, source, opts)
			if err != nil {
				return err
			}
			return output.print(env.stdout, result)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&opts.rounds, "rounds", 7, "how often each side does it")
	flags.IntVar(&opts.clients, "clients", 100, "clients that ask at once")
	flags.DurationVar(&opts.duration, "duration", 20*time.Second, "how long they go on")
	flags.IntVar(&opts.large, "large", 64, "size of a large artifact, in MiB")
	output.add(cmd)
	return cmd
}

// A comparison is what one act took on both sides, in milliseconds.
type comparison struct {
	Tidelock     float64 `json:"tidelock"`
	Distribution float64 `json:"distribution"`
	Ratio        float64 `json:"ratio"` // of throughputs: above 1 the forge is faster
}

func compare(tidelock, distribution []time.Duration) comparison {
	c := comparison{Tidelock: median(tidelock), Distribution: median(distribution)}
	c.Ratio = c.Distribution / c.Tidelock
	return c
}

// shapeResult is the comparison for artifacts of one shape.
type shapeResult struct {
	Shape  string     `json:"shape"`
	Layers int        `json:"layers"`
	Bytes  int64      `json:"bytes"` // of all layers
	Times  int        `json:"times"` // how often it was done on each side
	Push   comparison `json:"push"`
	Pull   comparison `json:"pull"`
}

// registryResult is what the bench prints.
type registryResult struct {
	Rounds int           `json:"rounds"`
	Shapes []shapeResult `json:"shapes"`
	Load   registryLoad  `json:"load"`
}

func (r registryResult) table(w io.Writer) error {
	t := newTable(w, "ARTIFACT", "ACT", "TIDELOCK", "DISTRIBUTION", "RATIO", "MB/S", "")
	for _, s := range r.Shapes {
		for _, act := range []struct {
			name string
			comparison
		}{{"push", s.Push}, {"pull", s.Pull}} {
			t.row(s.Shape, act.name, fmt.Sprintf("%.1f", act.Tidelock), fmt.Sprintf("%.1f", act.Distribution),
				fmt.Sprintf("%.2f", act.Ratio), fmt.Sprintf("%.0f", float64(s.Bytes)/1000/act.Tidelock), "ms")
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "\nmedians of %d rounds\n\n", r.Rounds); err != nil {
		return err
	}
	return r.Load.table(w)
}

// A shape is a kind of artifact that the sides are compared with.
type shape struct {
	name    string
	layers  int
	size    int64 // of each layer
	repeats int   // in each round, because one is soon done
}

func (o benchRegistryOptions) shapes() []shape {
	large := int64(o.large) << 20
	return []shape{
		{"20 KiB", 1, 20 << 10, 20},
		{fmt.Sprintf("1 × %d MiB", o.large), 1, large, 1},
		{fmt.Sprintf("8 × %g MiB", float64(o.large)/8), 8, large / 8, 1},
	}
}

// A registrySide is a registry, an image of it, and a client that keeps its
// connections and its token.
type registrySide struct {
	name   string
	image  name.Repository
	pusher *remote.Pusher
	puller *remote.Puller
	web    *http.Client
}

func newRegistrySide(side string, baseURL, image string, web *http.Client, auth authn.Authenticator) (*registrySide, error) {
	repo, err := registryRepository(baseURL, image)
	if err != nil {
		return nil, err
	}
	s := &registrySide{name: side, image: repo, web: web}
	options := []remote.Option{
		remote.WithTransport(web.Transport), remote.WithAuth(auth),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), // what fails shall be seen
	}
	if s.pusher, err = remote.NewPusher(options...); err != nil {
		return nil, err
	}
	s.puller, err = remote.NewPuller(options...)
	return s, err
}

func registryRepository(baseURL, image string) (name.Repository, error) {
	host := strings.TrimPrefix(strings.TrimPrefix(baseURL, "https://"), "http://")
	// Hosts such as "localhost" are asked without TLS first, unless it is said
	// how.
	if strings.HasPrefix(baseURL, "http://") {
		return name.NewRepository(host+"/"+image, name.Insecure)
	}
	return name.NewRepository(host + "/" + image)
}

// registryClient is a client with connections of its own.
func (b *benchForge) registryClient(image string) (*registrySide, error) {
	web, err := b.source.httpClient()
	if err != nil {
		return nil, err
	}
	auth := &authn.Basic{Username: "bench", Password: b.source.Token.Reveal()}
	return newRegistrySide("tidelock", b.source.URL, image, web, auth)
}

func benchRegistry(ctx context.Context, env *environment, source *sourceFlags, opts benchRegistryOptions) (_ registryResult, err error) {
	forge, err := newBenchForge(ctx, env, source)
	if err != nil {
		return registryResult{}, err
	}
	defer func() { err = errors.Join(err, forge.close(ctx)) }()
	result := registryResult{Rounds: opts.rounds}
	if result.Shapes, err = forge.compareRegistries(ctx, env, opts); err != nil {
		return registryResult{}, err
	}
	result.Load, err = forge.loadRegistry(ctx, env, opts)
	return result, err
}

// compareRegistries pushes and pulls artifacts of every shape on both sides in
// turn.
func (b *benchForge) compareRegistries(ctx context.Context, env *environment, opts benchRegistryOptions) (_ []shapeResult, err error) {
	plain, err := startPlainRegistry(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, plain.close()) }()
	if _, err := b.createProject(ctx, b.group, "artifacts"); err != nil {
		return nil, err
	}
	image := b.name + "/artifacts"
	ours, err := b.registryClient(image)
	if err != nil {
		return nil, err
	}
	defer ours.web.CloseIdleConnections()
	theirs, err := newRegistrySide("distribution", plain.url, image, plain.client(), authn.Anonymous)
	if err != nil {
		return nil, err
	}
	defer theirs.web.CloseIdleConnections()

	sides := []*registrySide{ours, theirs}
	var results []shapeResult
	for _, shape := range opts.shapes() {
		pushes, pulls := map[string][]time.Duration{}, map[string][]time.Duration{}
		for round := range opts.rounds + 1 { // the first one warms up
			env.warnf("%s: round %d of %d", shape.name, round, opts.rounds)
			for i := range shape.repeats {
				artifact, err := newBenchArtifact(shape)
				if err != nil {
					return nil, err
				}
				for s := range sides {
					side := sides[(s+round+i)%len(sides)]
					push, pull, err := side.turn(ctx, artifact, fmt.Sprintf("round-%d-%d-%d-%d", shape.layers, shape.size, round, i))
					if err != nil {
						return nil, fmt.Errorf("%s on %s: %w", shape.name, side.name, err)
					}
					if round > 0 {
						pushes[side.name], pulls[side.name] = append(pushes[side.name], push), append(pulls[side.name], pull)
					}
				}
			}
		}
		results = append(results, shapeResult{
			Shape: shape.name, Layers: shape.layers, Bytes: int64(shape.layers) * shape.size, Times: opts.rounds * shape.repeats,
			Push: compare(pushes[ours.name], pushes[theirs.name]),
			Pull: compare(pulls[ours.name], pulls[theirs.name]),
		})
	}
	return results, nil
}

// newBenchArtifact makes an artifact as Flux makes them, of random layers that
// no registry has yet.
func newBenchArtifact(s shape) (v1.Image, error) {
	layers := make([]v1.Layer, s.layers)
	for i := range layers {
		content := make([]byte, s.size)
		random := newRandom()
		random.Read(content) // it never fails
		layers[i] = static.NewLayer(content, types.MediaType(tidelock.MediaTypeFluxContent))
		if _, err := layers[i].Digest(); err != nil { // it is kept, so that no push has to count it
			return nil, err
		}
	}
	return fluxArtifact(layers...)
}

func newRandom() *rand.ChaCha8 {
	var seed [32]byte
	for i := range 4 {
		for j, n := 0, rand.Uint64(); j < 8; j, n = j+1, n>>8 {
			seed[8*i+j] = byte(n)
		}
	}
	return rand.NewChaCha8(seed)
}

func fluxArtifact(layers ...v1.Layer) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.MediaType(tidelock.MediaTypeFluxConfig))
	image, err := mutate.AppendLayers(base, layers...)
	if err != nil {
		return nil, err
	}
	// Computed once, here, and not in the first push.
	if _, err := image.Digest(); err != nil {
		return nil, err
	}
	return image, nil
}

// turn pushes an artifact under a tag and pulls it by that tag.
func (s *registrySide) turn(ctx context.Context, artifact v1.Image, tag string) (push, pull time.Duration, err error) {
	began := time.Now()
	if err := s.push(ctx, artifact, tag); err != nil {
		return 0, 0, fmt.Errorf("push: %w", err)
	}
	push = time.Since(began)
	began = time.Now()
	got, err := s.pull(ctx, tag)
	if err != nil {
		return 0, 0, fmt.Errorf("pull: %w", err)
	}
	pull = time.Since(began)
	want, err := artifact.Digest()
	if err != nil {
		return 0, 0, err
	}
	if got != want {
		return 0, 0, fmt.Errorf("pulled %s, pushed %s", got, want)
	}
	return push, pull, nil
}

func (s *registrySide) push(ctx context.Context, artifact v1.Image, tag string) error {
	return s.pusher.Push(ctx, s.image.Tag(tag), artifact)
}

// pull reads a manifest and everything it names, and checks the digests.
func (s *registrySide) pull(ctx context.Context, tag string) (v1.Hash, error) {
	descriptor, err := s.puller.Get(ctx, s.image.Tag(tag))
	if err != nil {
		return v1.Hash{}, err
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(descriptor.Manifest))
	if err != nil {
		return v1.Hash{}, err
	}
	for _, part := range append([]v1.Descriptor{manifest.Config}, manifest.Layers...) {
		layer, err := s.puller.Layer(ctx, s.image.Digest(part.Digest.String()))
		if err != nil {
			return v1.Hash{}, err
		}
		body, err := layer.Compressed()
		if err != nil {
			return v1.Hash{}, err
		}
		n, err := io.Copy(io.Discard, body) // the reader compares the digest
		if err := errors.Join(err, body.Close()); err != nil {
			return v1.Hash{}, err
		}
		if n != part.Size {
			return v1.Hash{}, fmt.Errorf("%s has %d bytes, want %d", part.Digest, n, part.Size)
		}
	}
	return descriptor.Digest, nil
}
