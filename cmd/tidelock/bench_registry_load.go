package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// registryLoad is what many clients at once saw.
type registryLoad struct {
	Clients   int                `json:"clients"`
	Seconds   float64            `json:"seconds"`
	Errors    int                `json:"errors"`
	PerSecond float64            `json:"acts_per_second"`
	All       latency            `json:"all"`
	Acts      map[string]latency `json:"acts"`

	firstError error
}

func (r registryLoad) table(w io.Writer) error {
	t := newTable(w, "ACT", "COUNT", "P50", "P99", "MAX", "")
	row := func(name string, l latency) {
		t.row(name, strconv.Itoa(l.Requests), fmt.Sprintf("%.1f", l.P50), fmt.Sprintf("%.1f", l.P99), fmt.Sprintf("%.1f", l.Max), "ms")
	}
	for _, act := range registryMix {
		row(act.name, r.Acts[act.name])
	}
	row("all", r.All)
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d clients at once for %.0f s: %.0f acts/s, %d errors\n", r.Clients, r.Seconds, r.PerSecond, r.Errors)
	return err
}

// registryMix is what each client does, and how often out of the sum of all
// shares. A push is six requests or more, a pull three.
var registryMix = []struct {
	name  string
	share int
	do    func(*loadClient, context.Context) error
}{
	{"push", 10, (*loadClient).pushOne},
	{"pull", 30, (*loadClient).pullOne},
	{"head", 40, (*loadClient).head},
	{"tags", 10, (*loadClient).tags},
	{"referrers", 10, (*loadClient).referrers},
}

// loadImages is how many images the clients share.
const loadImages = 5

// A loadClient is one client; it starts with an artifact that is pushed, and
// one that is attached to it.
type loadClient struct {
	*registrySide
	name    string
	subject v1.Hash // has something attached
	pushed  int
	last    v1.Hash
}

// newLoadClient makes a client with connections and a token of its own.
func (b *benchForge) newLoadClient(ctx context.Context, image string, n int) (*loadClient, error) {
	side, err := b.registryClient(image)
	if err != nil {
		return nil, err
	}
	c := &loadClient{registrySide: side, name: fmt.Sprintf("client-%d", n)}
	if err := c.pushOne(ctx); err != nil {
		return nil, err
	}
	c.subject = c.last
	subject, err := c.puller.Head(ctx, c.image.Digest(c.subject.String()))
	if err != nil {
		return nil, err
	}
	attached, err := newBenchArtifact(shape{layers: 1, size: 1 << 10})
	if err != nil {
		return nil, err
	}
	withSubject, ok := mutate.Subject(attached, *subject).(v1.Image)
	if !ok {
		return nil, errors.New("an artifact with a subject is no artifact")
	}
	digest, err := withSubject.Digest()
	if err != nil {
		return nil, err
	}
	return c, c.pusher.Push(ctx, c.image.Digest(digest.String()), withSubject)
}

func (c *loadClient) tag(n int) string { return fmt.Sprintf("%s-%d", c.name, n) }

func (c *loadClient) pushOne(ctx context.Context) error {
	artifact, err := newBenchArtifact(shape{layers: 1, size: 4 << 10})
	if err != nil {
		return err
	}
	if err := c.push(ctx, artifact, c.tag(c.pushed+1)); err != nil {
		return err
	}
	c.pushed++
	c.last, err = artifact.Digest()
	return err
}

func (c *loadClient) pullOne(ctx context.Context) error {
	got, err := c.pull(ctx, c.tag(c.pushed))
	if err == nil && got != c.last {
		err = fmt.Errorf("pulled %s, pushed %s", got, c.last)
	}
	return err
}

func (c *loadClient) head(ctx context.Context) error {
	found, err := c.puller.Head(ctx, c.image.Tag(c.tag(c.pushed)))
	if err == nil && found.Digest != c.last {
		err = fmt.Errorf("the tag is at %s, pushed was %s", found.Digest, c.last)
	}
	return err
}

// tags reads one page.
func (c *loadClient) tags(ctx context.Context) error {
	list, err := c.puller.Lister(ctx, c.image)
	if err != nil {
		return err
	}
	if !list.HasNext() {
		return fmt.Errorf("%s has no tags", c.image)
	}
	page, err := list.Next(ctx)
	if err == nil && len(page.Tags) == 0 {
		err = fmt.Errorf("%s has no tags", c.image)
	}
	return err
}

func (c *loadClient) referrers(ctx context.Context) error {
	subject := c.image.Digest(c.subject.String())
	index, err := remote.Referrers(subject, remote.Reuse(c.puller), remote.WithContext(ctx))
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err == nil && len(manifest.Manifests) == 0 {
		err = fmt.Errorf("nothing is attached to %s", subject)
	}
	return err
}

// loadRegistry lets all clients go on until the time is over. One that failed
// goes on too.
func (b *benchForge) loadRegistry(ctx context.Context, env *environment, opts benchRegistryOptions) (registryLoad, error) {
	clients := make([]*loadClient, opts.clients)
	for i := range min(loadImages, opts.clients) {
		if _, err := b.createProject(ctx, b.group, fmt.Sprintf("load-%d", i)); err != nil {
			return registryLoad{}, err
		}
	}
	env.warnf("make %d clients", opts.clients)
	for i := range clients {
		client, err := b.newLoadClient(ctx, fmt.Sprintf("%s/load-%d", b.name, i%loadImages), i)
		if err != nil {
			return registryLoad{}, fmt.Errorf("make client %d: %w", i, err)
		}
		defer client.web.CloseIdleConnections()
		clients[i] = client
	}
	env.warnf("%d clients ask for %s", opts.clients, opts.duration)
	shares := make([]int, len(registryMix))
	for i, act := range registryMix {
		shares[i] = act.share
	}
	deck := deal(shares)
	result := registryLoad{Clients: opts.clients, Acts: map[string]latency{}}
	var (
		mu    sync.Mutex
		times = map[int][]time.Duration{}
		all   []time.Duration
		busy  sync.WaitGroup
	)
	note := func(act int, took time.Duration, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			times[act], all = append(times[act], took), append(all, took)
			return
		}
		if result.Errors++; result.firstError == nil {
			result.firstError = fmt.Errorf("%s: %w", registryMix[act].name, err)
		}
	}
	began := time.Now()
	for i, client := range clients {
		busy.Go(func() {
			// Each begins elsewhere in the deck, so that they do not march in step.
			for n := i; ctx.Err() == nil && time.Since(began) < opts.duration; n++ {
				act := deck[n%len(deck)]
				sent := time.Now()
				err := registryMix[act].do(client, ctx)
				note(act, time.Since(sent), err)
			}
		})
	}
	busy.Wait()
	if ctx.Err() != nil {
		return registryLoad{}, context.Cause(ctx)
	}
	result.Seconds = time.Since(began).Seconds()
	result.PerSecond = float64(len(all)) / result.Seconds
	result.All = latencyOf(all)
	for i, act := range registryMix {
		result.Acts[act.name] = latencyOf(times[i])
	}
	if result.Errors > 0 {
		env.warnf("the first error: %v", result.firstError)
	}
	return result, nil
}
