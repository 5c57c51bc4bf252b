package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tidelock.dev"
)

const (
	// rollUpAfter is how many pushes, each of which left a pack, a repository
	// takes before its small packs are rolled up into one.
	rollUpAfter = 50

	// collectEvery is how often a repository that is pushed to is gone through
	// from its refs, and loses what nothing has reached for two weeks.
	collectEvery = 7 * 24 * time.Hour

	// abandonedAfter is when a file that a push keeps only while it lasts was
	// left behind by one that did not end.
	abandonedAfter = 24 * time.Hour

	maintainTimeout = 2 * time.Hour

	// collectedFile is written when a repository was last gone through.
	collectedFile = "tidelock-collected"
)

// Maintain keeps repositories small and quick until ctx is done: one at a
// time, with low priority, off the path of a push. A repository has its packs
// rolled up after many pushes, and at least every MaintainEvery if it was
// pushed to at all; all are looked at once in the beginning.
func (d *Disk) Maintain(ctx context.Context) error {
	tick := time.NewTicker(d.maintainEvery)
	defer tick.Stop()
	all, err := d.IDs(ctx)
	if err != nil {
		return err
	}
	for _, id := range all {
		d.maintain(ctx, id)
	}
	for {
		least := 1
		select {
		case <-ctx.Done():
			return nil
		case <-d.busy:
			least = rollUpAfter
		case <-tick.C:
		}
		for _, id := range d.pushedTo(least) {
			d.maintain(ctx, id)
		}
	}
}

// maintain does what is due in one repository. A failure costs space and
// speed only; it is tried again after the next pushes.
func (d *Disk) maintain(ctx context.Context, id tidelock.ProjectID) {
	ctx, cancel := context.WithTimeout(ctx, maintainTimeout)
	defer cancel()
	repo := d.Repo(id)
	err := repo.removeAbandoned()
	if err == nil {
		err = repo.rollUp(ctx)
	}
	if err == nil {
		err = repo.collect(ctx)
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, os.ErrNotExist) {
		d.log.WarnContext(ctx, "repository not maintained", "project", id, "error", err)
	}
}

// rollUp joins small packs so that each is at least twice as large as all
// smaller ones together: then there are few, and each object is copied only
// a few times in its life.
func (r *Repo) rollUp(ctx context.Context) error {
	packs, err := filepath.Glob(filepath.Join(r.dir, "objects", "pack", "*.pack"))
	if err != nil || len(packs) < rollUpAfter/2 {
		return err
	}
	cmd := r.disk.command(r, "-c", "repack.writeBitmaps=false", "repack", "-d", "-l", "-q", "--geometric=2")
	return r.disk.runThen(ctx, cmd, beNice)
}

// collect packs everything anew and drops old garbage, if it is time.
func (r *Repo) collect(ctx context.Context) error {
	stamp := filepath.Join(r.dir, collectedFile)
	made, err := os.Stat(filepath.Join(r.dir, "config"))
	if err != nil {
		return err
	}
	last := made.ModTime() // a new repository is no week old
	if info, err := os.Stat(stamp); err == nil {
		last = info.ModTime()
	}
	if time.Since(last) < collectEvery {
		return nil
	}
	cmd := r.disk.command(r, "-c", "gc.cruftPacks=true", "gc", "--quiet")
	if err := r.disk.runThen(ctx, cmd, beNice); err != nil {
		return err
	}
	if err := os.WriteFile(stamp, nil, 0o644); err != nil {
		return fmt.Errorf("note that repository %d was collected: %w", r.id, err)
	}
	now := time.Now()
	return os.Chtimes(stamp, now, now)
}

// removeAbandoned removes what pushes left behind that were killed: objects
// on probation, and the marks that keep a pack from being rolled up.
func (r *Repo) removeAbandoned() error {
	objects := filepath.Join(r.dir, "objects")
	probation, err := filepath.Glob(filepath.Join(objects, "tmp_objdir-*"))
	if err != nil {
		return err
	}
	keeps, err := filepath.Glob(filepath.Join(objects, "pack", "*.keep"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range append(probation, keeps...) {
		info, err := os.Lstat(path)
		if err != nil || time.Since(info.ModTime()) < abandonedAfter {
			continue
		}
		if strings.HasSuffix(path, ".keep") {
			// An administrator may keep a pack by hand; git signs its own.
			if why, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(why), "receive-pack ") {
				continue
			}
		}
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// notePushed counts a push, for Maintain.
func (d *Disk) notePushed(id tidelock.ProjectID) {
	d.mu.Lock()
	d.pushes[id]++
	busy := d.pushes[id] >= rollUpAfter
	d.mu.Unlock()
	if busy {
		select {
		case d.busy <- struct{}{}:
		default: // Maintain already has something to do
		}
	}
}

// pushedTo takes the repositories that had at least so many pushes since they
// were last taken.
func (d *Disk) pushedTo(least int) []tidelock.ProjectID {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []tidelock.ProjectID
	for id, n := range d.pushes {
		if n >= least {
			ids = append(ids, id)
			delete(d.pushes, id)
		}
	}
	return ids
}
