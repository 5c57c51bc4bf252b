package forge

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// Collected is what a collection of garbage removed, or would remove.
type Collected struct {
	Artifacts []tidelock.Artifact // of images that projects still have
	Blobs     int                 // taken out of images
	Strays    int                 // what storage had of an image and the record had not
	Images    int                 // that were empty
	Swept     registry.Swept      // content that no image had any more
}

// Collect removes what nobody can reach: artifacts that have no tag, are part
// of no index that has one and are attached to nothing that stays, blobs that
// no artifact names, what an interrupted upload left, and then content that no
// image has. What was pushed or asked for within ImageGrace stays, so that
// pushes may go on meanwhile, and so does what a cluster uses. With dry it only
// says what it would remove; content that is to be freed by that is not
// counted, because it still belongs to its images.
func (f *Forge) Collect(ctx context.Context, p Principal, dry bool) (Collected, error) {
	if err := f.Allow(ctx, p, Administer, OnForge); err != nil {
		return Collected{}, err
	}
	return f.collect(ctx, dry)
}

// CollectProject is Collect for the images of one project, and leaves their
// content to the next one for all.
func (f *Forge) CollectProject(ctx context.Context, p Principal, project tidelock.Project, dry bool) (Collected, error) {
	if err := f.Allow(ctx, p, ManageImages, OnProject(project)); err != nil {
		return Collected{}, err
	}
	var c Collected
	err := f.collectImages(ctx, tidelock.ImageFilter{Project: project.ID, Empty: true}, &c, dry)
	return c, err
}

func (f *Forge) collect(ctx context.Context, dry bool) (c Collected, err error) {
	began := time.Now()
	defer func() { f.metrics.collected(c, err, dry, time.Since(began)) }()
	if err := f.collectImages(ctx, tidelock.ImageFilter{Empty: true}, &c, dry); err != nil {
		return c, err
	}
	if err := f.collectStrays(ctx, &c, dry); err != nil {
		return c, err
	}
	if c.Swept, err = f.registry.Sweep(ctx, dry); err != nil {
		return c, fmt.Errorf("sweep the registry: %w", err)
	}
	return c, nil
}

func (f *Forge) collectImages(ctx context.Context, filter tidelock.ImageFilter, c *Collected, dry bool) error {
	images, _, err := f.store.Images(ctx, filter, tidelock.Page{})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, i := range images {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := f.collectImage(ctx, i, c, dry)
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound { // its project was deleted meanwhile
			return fmt.Errorf("collect the garbage of image %d: %w", i.ID, err)
		}
	}
	return nil
}

// collectAtOnce is how many things one transaction removes, because all other
// writers may have to wait for it.
const collectAtOnce = 200

// collectImage removes rows first and then what they stood for in storage,
// while nobody can push to the image. A crash between leaves strays.
func (f *Forge) collectImage(ctx context.Context, i tidelock.Image, c *Collected, dry bool) error {
	used, err := f.usedDigests(ctx, i.Project)
	if err != nil {
		return err
	}
	name := registry.Repo(i.Project, i.Name)
	defer f.images.lock(name)()
	before := f.now().Add(-f.imageGrace)
	rules, err := f.tagRules(ctx, i.Project)
	if err != nil {
		return err
	}
	content, err := f.store.ImageContent(ctx, i.ID)
	if err != nil {
		return fmt.Errorf("read what is in it: %w", err)
	}
	dead := unreachable(content, used, rules, before)
	if dry {
		return f.countGarbage(ctx, i, c, dead, len(dead) == len(content), before)
	}
	for some := range slices.Chunk(dead, collectAtOnce) {
		if err := f.removeDead(ctx, i, some); err != nil {
			return err
		}
		for _, d := range some {
			c.Artifacts = append(c.Artifacts, d.Artifact)
			if err := f.registry.RemoveManifest(ctx, name, d.Artifact.Digest); err != nil {
				return err
			}
		}
	}
	loose, _, err := f.store.LooseBlobs(ctx, i.ID, nil, before)
	if err != nil {
		return err
	}
	if len(dead)+len(loose) > 0 {
		defer f.freeRoom(i.Project)
	}
	for some := range slices.Chunk(loose, collectAtOnce) {
		gone, err := f.store.RemoveContent(ctx, i.ID, nil, some, before)
		if err != nil {
			return err
		}
		c.Blobs += len(gone)
		for _, digest := range gone {
			if err := f.registry.RemoveBlob(ctx, name, digest); err != nil {
				return err
			}
		}
	}
	empty, err := f.store.RemoveEmptyImage(ctx, i.ID, before)
	if empty {
		c.Images++
	}
	return err
}

// removeDead removes the rows of artifacts, and of the tags that were left
// behind.
func (f *Forge) removeDead(ctx context.Context, i tidelock.Image, dead []tidelock.Content) error {
	var pushes []tidelock.Push
	err := f.store.Atomically(ctx, func(ctx context.Context) error {
		pushes = nil
		digests := make([]tidelock.Digest, len(dead))
		for n, d := range dead {
			digests[n] = d.Artifact.Digest
			for _, tag := range d.Tags {
				push, err := f.untag(ctx, tag, tidelock.Push{Project: i.Project, At: f.now().UTC(), Trace: traceparent(ctx)})
				if err != nil {
					return err
				}
				pushes = append(pushes, push)
			}
		}
		_, err := f.store.RemoveContent(ctx, i.ID, digests, nil, time.Time{})
		return err
	})
	if err != nil {
		return err
	}
	for _, p := range pushes {
		f.announce(p)
	}
	return nil
}

// countGarbage tells what collectImage would remove of an image, which may be
// all of its artifacts.
func (f *Forge) countGarbage(ctx context.Context, i tidelock.Image, c *Collected, dead []tidelock.Content, all bool, before time.Time) error {
	digests := make(map[tidelock.Digest]bool, len(dead))
	for _, d := range dead {
		c.Artifacts = append(c.Artifacts, d.Artifact)
		digests[d.Artifact.Digest] = true
	}
	loose, blobs, err := f.store.LooseBlobs(ctx, i.ID, digests, before)
	if err != nil {
		return err
	}
	c.Blobs += len(loose)
	if all && len(loose) == blobs && i.CreatedAt.Before(before) {
		c.Images++
	}
	return nil
}

// unreachable finds the artifacts of an image that nothing holds, with the tags
// that were left behind by what they were attached to.
func unreachable(content []tidelock.Content, used map[tidelock.Digest]bool, rules tagRules, before time.Time) (dead []tidelock.Content) {
	all := make(map[tidelock.Digest]tidelock.Content, len(content))
	for _, c := range content {
		all[c.Artifact.Digest] = c
	}
	alive := map[tidelock.Digest]bool{}
	var next []tidelock.Digest
	reach := func(digest tidelock.Digest) {
		if _, ok := all[digest]; ok && !alive[digest] {
			alive[digest] = true
			next = append(next, digest)
		}
	}
	attached := map[tidelock.Digest][]tidelock.Digest{} // by subject
	for _, c := range content {
		digest := c.Artifact.Digest
		if subject := c.Artifact.Subject; subject != "" {
			attached[subject] = append(attached[subject], digest)
		}
		if c.SeenAt.After(before) || used[digest] {
			reach(digest)
		}
		for _, tag := range c.Tags {
			if subject, ok := attachedTo(tag.Name); ok && !rules.keeps(tag.Name) {
				attached[subject] = append(attached[subject], digest)
			} else {
				reach(digest)
			}
		}
	}
	for len(next) > 0 {
		digest := next[0]
		next = next[1:]
		for _, p := range all[digest].Artifact.Parts {
			reach(p.Digest)
		}
		for _, a := range attached[digest] {
			reach(a)
		}
	}
	for _, c := range content {
		if !alive[c.Artifact.Digest] {
			dead = append(dead, c)
		}
	}
	return dead
}

// collectStrays takes out of storage what images have there and not in the
// record: of projects that were deleted, and what a crash left. Young ones may
// belong to a push that goes on.
func (f *Forge) collectStrays(ctx context.Context, c *Collected, dry bool) error {
	links, err := f.registry.Links(ctx, f.now().Add(-f.imageGrace))
	if err != nil {
		return fmt.Errorf("list what storage has: %w", err)
	}
	for name, of := range links {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.collectStraysOf(ctx, name, of, c, dry); err != nil {
			return fmt.Errorf("collect the strays of %s: %w", name, err)
		}
	}
	return nil
}

func (f *Forge) collectStraysOf(ctx context.Context, name registry.Name, links []registry.Link, c *Collected, dry bool) error {
	id, image, _ := strings.Cut(strings.TrimPrefix(string(name), "p"), "/")
	project, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return nil // not ours
	}
	var blobs, manifests []tidelock.Digest
	for _, l := range links {
		if l.Manifest {
			manifests = append(manifests, l.Digest)
		} else {
			blobs = append(blobs, l.Digest)
		}
	}
	defer f.images.lock(name)()
	var known, knownManifests map[tidelock.Digest]int64
	i, err := f.store.ImageByName(ctx, tidelock.ProjectID(project), image)
	if err == nil {
		if known, err = f.store.KnownBlobs(ctx, i.ID, blobs); err == nil {
			knownManifests, err = f.store.KnownArtifacts(ctx, i.ID, manifests)
		}
	}
	if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		return err
	}
	for _, l := range links {
		has, remove := known, f.registry.RemoveBlob
		if l.Manifest {
			has, remove = knownManifests, f.registry.RemoveManifest
		}
		if _, ok := has[l.Digest]; ok {
			continue
		}
		c.Strays++
		if dry {
			continue
		}
		if err := remove(ctx, name, l.Digest); err != nil {
			return err
		}
	}
	return nil
}

// runImages applies retentions when they are due and collects garbage now and
// then, until ctx is done.
func (f *Forge) runImages(ctx context.Context) {
	retain := time.NewTicker(time.Minute)
	defer retain.Stop()
	collect := time.NewTicker(f.collectEvery)
	defer collect.Stop()
	f.retainDue(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-retain.C:
			f.retainDue(ctx)
		case <-collect.C:
			began := time.Now()
			c, err := f.collect(ctx, false)
			switch {
			case ctx.Err() != nil:
			case err != nil:
				f.log.WarnContext(ctx, "registry not collected to the end", "error", err)
			default:
				f.log.InfoContext(ctx, "registry collected", "artifacts", len(c.Artifacts), "blobs", c.Blobs, "strays", c.Strays,
					"freed", c.Swept.Bytes, "took", time.Since(began))
			}
		}
	}
}

// imageMetrics count what leaves the registry.
type imageMetrics struct {
	retained  prometheus.Counter
	artifacts prometheus.Counter
	blobs     prometheus.Counter
	bytes     prometheus.Counter
	runs      *prometheus.CounterVec // by result
	duration  prometheus.Histogram
	last      prometheus.Gauge
}

func newImageMetrics(registerer prometheus.Registerer) *imageMetrics {
	m := &imageMetrics{
		retained: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_registry_retention_removed_tags_total", Help: "Tags that retention removed.",
		}),
		artifacts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_registry_collected_artifacts_total", Help: "Artifacts that garbage collection removed.",
		}),
		blobs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_registry_collected_blobs_total", Help: "Blobs that garbage collection took out of images.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_registry_freed_bytes_total", Help: "Bytes of content that no image had and that were deleted.",
		}),
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_registry_collections_total", Help: "Garbage collections by how they ended: done or failed.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidelock_registry_collection_seconds", Help: "Time that a garbage collection took.",
			Buckets: []float64{.01, .1, 1, 10, 60, 600, 3600},
		}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidelock_registry_last_collection_timestamp_seconds", Help: "When a garbage collection last came to its end.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.retained, m.artifacts, m.blobs, m.bytes, m.runs, m.duration, m.last)
	}
	return m
}

func (m *imageMetrics) collected(c Collected, err error, dry bool, took time.Duration) {
	if dry {
		return
	}
	m.artifacts.Add(float64(len(c.Artifacts)))
	m.blobs.Add(float64(c.Blobs))
	m.bytes.Add(float64(c.Swept.Bytes))
	m.duration.Observe(took.Seconds())
	if err != nil {
		m.runs.WithLabelValues("failed").Inc()
		return
	}
	m.runs.WithLabelValues("done").Inc()
	m.last.SetToCurrentTime()
}
