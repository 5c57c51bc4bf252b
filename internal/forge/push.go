package forge

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// A RefCommand is one line of a push before it happens: Old is empty to
// create the ref, New is empty to delete it.
type RefCommand struct {
	Ref tidelock.RefName
	Old tidelock.CommitID
	New tidelock.CommitID
}

// A PushDecision says what of a push may happen.
type PushDecision struct {
	// Refused holds the reason for each ref that may not move so.
	Refused map[tidelock.RefName]string
	// DenyNonFastForward is set when the push moves a protected branch:
	// whether it only goes forward is known once the objects are in.
	DenyNonFastForward bool
}

// AuthorizePush decides every ref of a push before git runs. Its error says
// that the principal may not push to the project at all.
func (f *Forge) AuthorizePush(ctx context.Context, p Principal, project tidelock.Project, commands []RefCommand) (PushDecision, error) {
	decision := PushDecision{Refused: map[tidelock.RefName]string{}}
	if err := f.Allow(ctx, p, PushCode, OnProject(project)); err != nil {
		return decision, err
	}
	level, err := f.level(ctx, p, OnProject(project))
	if err != nil {
		return decision, err
	}
	if p.admin() {
		level = tidelock.Owner
	}
	protected, err := f.store.ProtectedBranches(ctx, project.ID)
	if err != nil {
		return decision, fmt.Errorf("list protected branches of project %d: %w", project.ID, err)
	}
	if p.User == nil && p.Key != nil {
		level, protected = deployKeyLevel, openTo(p.Key.ID, protected)
	}
	tags, err := f.protectedTagsFor(ctx, project, commands)
	if err != nil {
		return decision, err
	}
	for _, c := range commands {
		if reason := cmp.Or(refuse(c, project, protected, level), refuseTag(c, tags, level)); reason != "" {
			decision.Refused[c.Ref] = reason
			continue
		}
		if branch, ok := c.Ref.Branch(); ok && c.Old != "" && guarded(protected, branch) {
			decision.DenyNonFastForward = true
		}
	}
	return decision, nil
}

// deployKeyLevel is what a deploy key that may push is as good as.
const deployKeyLevel = tidelock.Developer

// openTo is the protection of branches as a deploy key meets it: those that
// name the key are open to it.
func openTo(key tidelock.KeyID, protected []tidelock.ProtectedBranch) []tidelock.ProtectedBranch {
	protected = slices.Clone(protected)
	for i, b := range protected {
		if slices.Contains(b.Keys, key) {
			protected[i].PushLevel = deployKeyLevel
		}
	}
	return protected
}

// hidden are refs that the forge keeps for itself.
var hidden = []string{"refs/tidelock/", "refs/merge-requests/", "refs/keep-around/", "refs/environments/", "refs/pipelines/"}

func refuse(c RefCommand, project tidelock.Project, protected []tidelock.ProtectedBranch, level tidelock.AccessLevel) string {
	if err := tidelock.ValidRef(c.Ref); err != nil {
		return "not a ref name"
	}
	for _, prefix := range hidden {
		if strings.HasPrefix(string(c.Ref), prefix) {
			return "refs under " + prefix + " belong to the forge"
		}
	}
	branch, ok := c.Ref.Branch()
	if !ok {
		return ""
	}
	if c.New == "" && branch == project.DefaultBranch {
		return "the default branch cannot be deleted"
	}
	matched := false
	for _, b := range protected {
		if !b.Matches(branch) {
			continue
		}
		matched = true
		if c.New != "" && b.PushLevel != tidelock.NoAccess && level >= b.PushLevel {
			return ""
		}
	}
	switch {
	case matched && c.New == "":
		return keepsBranch
	case matched:
		return "you may not push to this protected branch"
	}
	return ""
}

// guarded reports whether a branch is protected and nothing allows to force it.
func guarded(protected []tidelock.ProtectedBranch, branch string) bool {
	matched := false
	for _, b := range protected {
		if b.Matches(branch) {
			if b.AllowForce {
				return false
			}
			matched = true
		}
	}
	return matched
}

// Pushed records what a push did: it reads the named refs from disk, whatever
// git said of them, moves the recorded heads in one transaction and rings the
// bus. On an error the push stays on disk, the repository is marked dirty and
// compared again until it is recorded; the error is a warning to the client.
func (f *Forge) Pushed(ctx context.Context, id tidelock.ProjectID, p Principal, names []tidelock.RefName) (tidelock.Push, error) {
	push, err := f.record(ctx, id, p, func() ([]tidelock.RefUpdate, error) {
		refs, err := f.repos.Repo(id).ReadRefs(ctx, names...)
		if err != nil {
			return nil, fmt.Errorf("read the refs of project %d: %w", id, err)
		}
		return updatesOf(names, refs), nil
	})
	if err != nil {
		f.MarkDirty(id)
		return tidelock.Push{}, err
	}
	return push, nil
}

func updatesOf(names []tidelock.RefName, refs []gitrepo.Ref) []tidelock.RefUpdate {
	found := make(map[tidelock.RefName]gitrepo.Ref, len(refs))
	for _, r := range refs {
		found[r.Name] = r
	}
	updates := make([]tidelock.RefUpdate, 0, len(names))
	for _, name := range names {
		r := found[name] // zero when deleted
		updates = append(updates, tidelock.RefUpdate{Ref: name, New: r.Object, Commit: r.Commit})
	}
	return updates
}

// Compare records every ref that is on disk otherwise than in the store. It
// finds what a crash between git and SQL, or a full disk, left unrecorded.
func (f *Forge) Compare(ctx context.Context, id tidelock.ProjectID) (tidelock.Push, error) {
	return f.record(ctx, id, Principal{}, func() ([]tidelock.RefUpdate, error) {
		refs, err := f.repos.Repo(id).Refs(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the refs of project %d: %w", id, err)
		}
		heads, err := f.store.Heads(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("list the heads of project %d: %w", id, err)
		}
		names := make([]tidelock.RefName, 0, len(refs))
		known := make(map[tidelock.RefName]tidelock.CommitID, len(heads))
		for _, h := range heads {
			known[h.Ref] = h.Object
		}
		seen := make(map[tidelock.RefName]bool, len(refs))
		for _, r := range refs {
			seen[r.Name] = true
			if known[r.Name] != r.Object {
				names = append(names, r.Name)
			}
		}
		for _, h := range heads {
			if !seen[h.Ref] {
				names = append(names, h.Ref)
			}
		}
		return updatesOf(names, refs), nil
	})
}

// record reads and writes under the project's lock, so that two pushes of one
// ref are recorded in the order in which git made them. What follows from the
// push belongs to the trace of ctx or, when the push was found by comparison,
// to one that begins here.
func (f *Forge) record(ctx context.Context, id tidelock.ProjectID, p Principal, read func() ([]tidelock.RefUpdate, error)) (tidelock.Push, error) {
	began := time.Now()
	unlock := f.recording.lock(id)
	defer unlock()
	updates, err := read()
	if err != nil || len(updates) == 0 {
		return tidelock.Push{}, err
	}
	ctx, span := f.tracer.Start(ctx, "record push", trace.WithTimestamp(began), trace.WithAttributes(
		attribute.Int64("tidelock.project", int64(id)),
		attribute.Int("tidelock.refs", len(updates)),
	))
	defer span.End()
	user, token := p.ids()
	push, err := f.store.RecordPush(ctx, tidelock.Push{
		Project: id, By: user, Token: token, Key: p.key(), At: f.now().UTC(), Trace: traceparent(ctx), Updates: updates,
	})
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		return tidelock.Push{}, fmt.Errorf("record a push to project %d: %w", id, err)
	}
	if push.ID == 0 {
		return push, nil
	}
	span.SetAttributes(attribute.Int64("tidelock.push", int64(push.ID)))
	f.announce(push)
	if err := f.adoptDefaultBranch(ctx, push); err != nil {
		f.log.WarnContext(ctx, "default branch not set", "project", id, "error", err)
	}
	return push, nil
}

// traceparent is the trace of ctx in W3C's words; "" for none.
func traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"]
}

// announce rings the bus and leaves the mark to Run. If either is lost, the
// push is found unannounced and rung again; hearing twice does no harm.
func (f *Forge) announce(push tidelock.Push) {
	if !publish(f, tidelock.Pushed{Project: push.Project, Push: push.ID}) {
		return
	}
	select {
	case f.marks <- push.ID:
	default:
	}
}

// adoptDefaultBranch makes the first branch of an empty repository its default
// when the one it was created with does not exist.
func (f *Forge) adoptDefaultBranch(ctx context.Context, push tidelock.Push) error {
	created := ""
	for _, u := range push.Updates {
		if branch, ok := u.Ref.Branch(); ok && u.Old == "" && u.New != "" {
			created = branch
			break
		}
	}
	if created == "" {
		return nil
	}
	project, err := f.store.Project(ctx, push.Project)
	if err != nil || project.DefaultBranch == created {
		return err
	}
	heads, err := f.store.Heads(ctx, push.Project)
	if err != nil {
		return err
	}
	branches := 0
	for _, h := range heads {
		if branch, ok := h.Ref.Branch(); ok {
			if branch == project.DefaultBranch {
				return nil
			}
			branches++
		}
	}
	if branches > len(push.Updates) {
		return nil // it had branches before this push
	}
	if err := f.repos.Repo(project.ID).SetDefaultBranch(ctx, created); err != nil {
		return err
	}
	before := project.DefaultBranch
	project.DefaultBranch, project.UpdatedAt = created, f.now().UTC()
	if _, err := f.store.UpdateProject(ctx, project); err != nil {
		return err
	}
	if err := f.moveProtection(ctx, project, before); err != nil {
		return err
	}
	publish(f, tidelock.Pushed{Project: project.ID, Push: push.ID})
	return nil
}

// moveProtection lets the protection that a project was created with follow
// its default branch.
func (f *Forge) moveProtection(ctx context.Context, project tidelock.Project, before string) error {
	protected, err := f.store.ProtectedBranches(ctx, project.ID)
	if err != nil {
		return err
	}
	for _, b := range protected {
		if b.Pattern == before {
			b.ID, b.Pattern = 0, project.DefaultBranch
			if _, err := f.store.ProtectBranch(ctx, b); err != nil && tidelock.KindOf(err) != tidelock.Conflict {
				return err
			}
		}
	}
	return nil
}

// dirtiness is a repository whose refs may differ from its heads.
type dirtiness struct {
	next  time.Time
	delay time.Duration
}

const (
	firstCompare = 250 * time.Millisecond
	lastCompare  = time.Minute
)

// MarkDirty asks Run to compare a repository soon, and again with back-off
// until it could.
func (f *Forge) MarkDirty(id tidelock.ProjectID) {
	f.mu.Lock()
	if f.dirty[id] == nil {
		f.dirty[id] = &dirtiness{next: time.Now().Add(firstCompare), delay: firstCompare}
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Dirty counts the repositories that wait to be compared.
func (f *Forge) Dirty() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.dirty)
}

// Run keeps the promise that no push is lost: it rings the bus for pushes that
// were recorded but not announced, compares every repository's refs with its
// heads at start and every CompareEvery, and dirty ones until they are clean.
// It returns when ctx is done.
func (f *Forge) Run(ctx context.Context) error {
	writes := make(chan struct{})
	go func() {
		defer close(writes)
		f.runWrites(ctx)
	}()
	defer func() { <-writes }()
	images := make(chan struct{})
	go func() {
		defer close(images)
		f.runImages(ctx)
	}()
	defer func() { <-images }()
	waits := make(chan struct{})
	go func() {
		defer close(waits)
		f.runWaiters(ctx)
	}()
	defer func() { <-waits }()
	history := make(chan struct{})
	go func() {
		defer close(history)
		f.runHistory(ctx)
	}()
	defer func() { <-history }()

	f.ringUnannounced(ctx)
	f.compareAll(ctx)
	slow := time.NewTicker(f.compareEvery)
	defer slow.Stop()
	sweep := time.NewTicker(30 * time.Second)
	defer sweep.Stop()
	for {
		due := time.NewTimer(f.compareDirty(ctx))
		select {
		case <-ctx.Done():
			due.Stop()
			return nil
		case <-due.C:
		case <-f.wake:
		case <-sweep.C:
			f.ringUnannounced(ctx)
		case <-slow.C:
			f.compareAll(ctx)
		}
		due.Stop()
	}
}

// runWrites does the writes that nobody waits for: marks of announced pushes,
// many in one transaction, and times of last use.
func (f *Forge) runWrites(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			f.mark(context.WithoutCancel(ctx), nil)
			return
		case id := <-f.marks:
			f.mark(ctx, []tidelock.PushID{id})
			select { // leave the disk to the pushes for a moment; more marks gather meanwhile
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		case write := <-f.touches:
			if err := write(ctx); err != nil && ctx.Err() == nil {
				f.log.WarnContext(ctx, "time of last use not written", "error", err)
			}
		}
	}
}

// mark writes the given marks and all that wait.
func (f *Forge) mark(ctx context.Context, ids []tidelock.PushID) {
	for len(ids) < 1000 {
		select {
		case id := <-f.marks:
			ids = append(ids, id)
			continue
		default:
		}
		break
	}
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := f.store.MarkAnnounced(ctx, ids...); err != nil && ctx.Err() == nil {
		f.log.WarnContext(ctx, "pushes not marked as announced: they will be announced again", "count", len(ids), "error", err)
	}
}

func (f *Forge) ringUnannounced(ctx context.Context) {
	pushes, err := f.store.Unannounced(ctx, 1000)
	if err != nil {
		if ctx.Err() == nil {
			f.log.WarnContext(ctx, "unannounced pushes not read", "error", err)
		}
		return
	}
	for _, push := range pushes {
		f.announce(push)
	}
}

func (f *Forge) compareAll(ctx context.Context) {
	projects, _, err := f.store.Projects(ctx, tidelock.ProjectFilter{}, tidelock.Page{})
	if err != nil {
		if ctx.Err() == nil {
			f.log.WarnContext(ctx, "repositories not compared", "error", err)
		}
		return
	}
	for _, project := range projects {
		if ctx.Err() != nil {
			return
		}
		f.compare(ctx, project)
	}
}

func (f *Forge) compare(ctx context.Context, project tidelock.Project) {
	push, err := f.Compare(ctx, project.ID)
	switch {
	case ctx.Err() != nil:
	case tidelock.KindOf(err) == tidelock.NotFound:
		// A crash between the row and the folder: make the folder now.
		if err := f.repos.Create(ctx, project.ID, project.DefaultBranch); err != nil {
			f.log.ErrorContext(ctx, "repository missing", "project", project.ID, "error", err)
		}
	case err != nil:
		f.log.WarnContext(ctx, "repository not compared", "project", project.ID, "error", err)
		f.MarkDirty(project.ID)
	case push.ID != 0:
		f.log.WarnContext(ctx, "unrecorded push found", "project", project.ID, "push", push.ID, "refs", len(push.Updates))
	}
}

// compareDirty compares the dirty repositories that are due and returns how
// long to wait for the next one.
func (f *Forge) compareDirty(ctx context.Context) time.Duration {
	wait := time.Hour
	f.mu.Lock()
	var due []tidelock.ProjectID
	for id, d := range f.dirty {
		if left := time.Until(d.next); left <= 0 {
			due = append(due, id)
		} else {
			wait = min(wait, left)
		}
	}
	f.mu.Unlock()

	for _, id := range due {
		push, err := f.Compare(ctx, id)
		if tidelock.KindOf(err) == tidelock.NotFound {
			err = nil // the project is gone
		}
		f.mu.Lock()
		if err == nil {
			delete(f.dirty, id)
		} else if d := f.dirty[id]; d != nil {
			d.delay = min(2*d.delay, lastCompare)
			d.next = time.Now().Add(d.delay)
			wait = min(wait, d.delay)
		}
		f.mu.Unlock()
		switch {
		case err != nil && ctx.Err() == nil:
			f.log.WarnContext(ctx, "repository still not compared", "project", id, "error", err)
		case push.ID != 0:
			f.log.InfoContext(ctx, "push recorded late", "project", id, "push", push.ID)
		}
	}
	return wait
}
