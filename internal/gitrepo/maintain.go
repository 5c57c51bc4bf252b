package gitrepo

import (
	"context"
	"fmt"
	"time"

	"tidelock.dev"
)

const maintainTimeout = time.Hour

// Maintain tidies repositories up until ctx is done: it packs loose objects
// and refs and drops what nothing has reached for two weeks, one repository
// at a time and with low priority, off the path of a push. It looks at all
// repositories once and then at those that were pushed to.
func (d *Disk) Maintain(ctx context.Context) error {
	tick := time.NewTicker(d.maintainEvery)
	defer tick.Stop()
	all, err := d.IDs(ctx)
	if err != nil {
		return err
	}
	for _, id := range all {
		d.notePushed(id)
	}
	for {
		for _, id := range d.takePushed() {
			if err := d.maintain(ctx, id); err != nil && ctx.Err() == nil {
				d.log.WarnContext(ctx, "repository not maintained", "project", id, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// maintain does what git finds due in one repository.
func (d *Disk) maintain(ctx context.Context, id tidelock.ProjectID) error {
	repo := d.Repo(id)
	if tidelock.KindOf(repo.exists()) == tidelock.NotFound {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, maintainTimeout)
	defer cancel()
	cmd := d.command(repo, "-c", "gc.auto=2000", "-c", "gc.autoPackLimit=50", "gc", "--auto", "--quiet")
	if err := d.runThen(ctx, cmd, beNice); err != nil {
		return fmt.Errorf("maintain repository %d: %w", id, err)
	}
	return nil
}

func (d *Disk) notePushed(id tidelock.ProjectID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pushed[id] = true
}

func (d *Disk) takePushed() []tidelock.ProjectID {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := make([]tidelock.ProjectID, 0, len(d.pushed))
	for id := range d.pushed {
		ids = append(ids, id)
	}
	clear(d.pushed)
	return ids
}
