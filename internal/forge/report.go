package forge

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"tidelock.dev"
)

// reportBatch is how many rollouts one transaction reports.
const reportBatch = 200

// ReportRollouts writes to the commits of a project what became of them in
// clusters: every rollout that was not reported as it is now gets its one job
// in the commit's pipeline, and its place in the deployment of its
// environment. It may be called again, and end at any moment; a rollout that
// changes meanwhile is reported again. A commit that cannot be reported keeps
// no other waiting. An archived project is not written to; what is to be told
// of it waits.
func (f *Forge) ReportRollouts(ctx context.Context, id tidelock.ProjectID) error {
	failed := map[tidelock.CommitID]bool{}
	var first error
	for page := 1; ; {
		project, err := f.store.Project(ctx, id)
		if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && project.Archived) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read project %d: %w", id, err)
		}
		// Those that failed stay listed, before those that are to come.
		due, _, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: id, Unreported: true}, tidelock.Page{Number: page, PerPage: reportBatch})
		if err != nil {
			return fmt.Errorf("list rollouts of project %d: %w", id, err)
		}
		if len(due) == 0 {
			break
		}
		tried := false
		for len(due) > 0 {
			commit := due[0].Commit
			of := func(r tidelock.Rollout) bool { return r.Commit == commit }
			if !failed[commit] {
				tried = true
				unnamed := slices.ContainsFunc(due, func(r tidelock.Rollout) bool { return of(r) && shortRef(r.Ref).name == "" })
				if err := f.reportCommit(ctx, project, commit, unnamed); err != nil {
					failed[commit] = true
					first = cmp.Or(first, fmt.Errorf("report rollouts of commit %s in project %d: %w", commit, id, err))
				}
			}
			due = slices.DeleteFunc(due, of)
		}
		if !tried {
			page++
		}
	}
	if len(failed) > 1 {
		return fmt.Errorf("%d commits were not reported; one of them: %w", len(failed), first)
	}
	return first
}

// shortRef is zero for what is neither a branch nor a tag.
func shortRef(ref tidelock.RefName) statusRef {
	if tag, ok := ref.Tag(); ok {
		return statusRef{tag, true}
	}
	if branch, ok := ref.Branch(); ok {
		return statusRef{branch, false}
	}
	return statusRef{}
}

// reportCommit reports rollouts of one commit in one transaction. When some
// are unnamed, the ref that they came by is not known.
func (f *Forge) reportCommit(ctx context.Context, project tidelock.Project, commit tidelock.CommitID, unnamed bool) error {
	ref := statusRef{name: project.DefaultBranch}
	if unnamed {
		found, err := f.statusRef(ctx, project, commit, NewStatus{})
		switch {
		case err == nil:
			ref = found
		case tidelock.KindOf(err) != tidelock.NotFound: // else no ref has it any more
			return err
		}
	}
	var done *report
	err := f.store.Atomically(ctx, func(ctx context.Context) error {
		if err := f.store.LockProject(ctx, project.ID); err != nil {
			return err
		}
		r, err := f.newReport(ctx, project, commit, ref)
		if err != nil {
			return err
		}
		done = r
		due, err := r.unreported(ctx)
		if err != nil {
			return err
		}
		if err := r.write(ctx, due); err != nil {
			return err
		}
		return f.store.RolloutsReported(ctx, r.now, due...)
	})
	if err != nil {
		return err
	}
	done.tell(ctx)
	return nil
}

// A report writes rollouts of one commit inside a transaction that has locked
// the project.
type report struct {
	poster
	ref      statusRef           // for rollouts that do not know theirs
	rollouts []*tidelock.Rollout // all of the commit, as they are to be

	appliers    map[tidelock.AgentID][]tidelock.ObjectID // of what is to be reported
	boards      map[statusRef]*board
	sites       map[tidelock.AgentID]*site
	deployments map[tidelock.EnvironmentID]tidelock.Deployment // of the commit, by rollouts

	pipelines []tidelock.PipelineID    // that have to be summed up again
	deployed  []tidelock.EnvironmentID // whose deployment has to be

	said, placed, hooks bool // what there is to tell of
}

func (f *Forge) newReport(ctx context.Context, project tidelock.Project, commit tidelock.CommitID, ref statusRef) (*report, error) {
	r := &report{
		poster: poster{f: f, project: project, commit: commit, now: f.now().UTC()}, ref: ref,
		boards: map[statusRef]*board{}, sites: map[tidelock.AgentID]*site{},
		deployments: map[tidelock.EnvironmentID]tidelock.Deployment{},
	}
	all, _, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: project.ID, Commit: commit}, tidelock.Page{})
	if err != nil {
		return nil, err
	}
	read := map[tidelock.DeploymentID]bool{}
	for i := range all {
		r.rollouts = append(r.rollouts, &all[i])
		id := all[i].Deployment
		if id == 0 || read[id] {
			continue
		}
		read[id] = true
		deployment, err := f.store.Deployment(ctx, id)
		if tidelock.KindOf(err) == tidelock.NotFound { // somebody deleted it
			continue
		}
		if err != nil {
			return nil, err
		}
		r.deployments[deployment.Environment] = deployment
	}
	return r, nil
}

// unreported are the first rollouts that were not reported as they are now.
func (r *report) unreported(ctx context.Context) ([]tidelock.Rollout, error) {
	due, _, err := r.f.store.Rollouts(ctx, tidelock.RolloutFilter{
		Project: r.project.ID, Commit: r.commit, Unreported: true,
	}, tidelock.Page{Number: 1, PerPage: reportBatch})
	return due, err
}

// write reports some of the rollouts, and remembers in each where.
func (r *report) write(ctx context.Context, due []tidelock.Rollout) error {
	// Where two want one name, a Kustomization has it before a HelmRelease,
	// and the older agent before the newer.
	slices.SortFunc(due, func(a, b tidelock.Rollout) int {
		return cmp.Or(-strings.Compare(kindOf(a), kindOf(b)), cmp.Compare(a.Agent, b.Agent), cmp.Compare(a.ID, b.ID))
	})
	appliers := map[tidelock.AgentID][]tidelock.ObjectID{}
	for i := range due {
		rollout := &due[i]
		appliers[rollout.Agent] = append(appliers[rollout.Agent], rollout.Applier)
		at := slices.IndexFunc(r.rollouts, func(o *tidelock.Rollout) bool { return o.ID == rollout.ID })
		if at < 0 { // it came about after all were read
			r.rollouts = append(r.rollouts, rollout)
		} else {
			r.rollouts[at] = rollout
		}
	}
	r.appliers = appliers
	for i := range due {
		if err := r.job(ctx, &due[i]); err != nil {
			return fmt.Errorf("write the job of %s of agent %d: %w", due[i].Applier, due[i].Agent, err)
		}
		if err := r.deploy(ctx, &due[i]); err != nil {
			return fmt.Errorf("record the deployment by %s of agent %d: %w", due[i].Applier, due[i].Agent, err)
		}
	}
	for _, id := range r.pipelines {
		pipeline, err := r.f.store.Pipeline(ctx, id)
		if err != nil {
			return err
		}
		moved, err := r.sumUp(ctx, pipeline)
		if err != nil {
			return err
		}
		r.hooks = r.hooks || moved
	}
	for _, id := range r.deployed {
		if err := r.sumUpDeployment(ctx, r.deployments[id]); err != nil {
			return err
		}
	}
	return nil
}

func kindOf(r tidelock.Rollout) string {
	kind, _, _ := r.Applier.Split()
	return string(kind)
}

// tell publishes what the report changed.
func (r *report) tell(ctx context.Context) {
	if r.said {
		publish(r.f, tidelock.StatusChanged{Project: r.project.ID, Commit: r.commit})
	}
	if r.placed {
		publish(r.f, tidelock.DeploymentChanged{Project: r.project.ID})
	}
	if r.hooks {
		publish(r.f, tidelock.HooksDue{Project: r.project.ID})
	}
	if r.said || r.placed {
		r.f.log.DebugContext(ctx, "rollouts reported", "project", r.project.ID, "commit", r.commit)
	}
}

// endReports cancels what an agent has under way, in the transaction that
// removes the agent: nobody would go on with it. The reports are to be told
// when the transaction has ended.
func (f *Forge) endReports(ctx context.Context, agent tidelock.AgentID) ([]*report, error) {
	err := f.store.LockAgent(ctx, agent) // nothing begins meanwhile
	if tidelock.KindOf(err) == tidelock.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	open, _, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Agent: agent, States: []tidelock.RolloutState{
		tidelock.RolloutPending, tidelock.RolloutRunning, tidelock.RolloutUnknown,
	}}, tidelock.Page{})
	if err != nil {
		return nil, fmt.Errorf("list rollouts of agent %d: %w", agent, err)
	}
	slices.SortFunc(open, func(a, b tidelock.Rollout) int { // projects are locked in one order
		return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Commit, b.Commit))
	})
	var reports []*report
	for len(open) > 0 {
		first := open[0]
		end := slices.IndexFunc(open, func(r tidelock.Rollout) bool { return r.Project != first.Project || r.Commit != first.Commit })
		if end < 0 {
			end = len(open)
		}
		r, err := f.endReport(ctx, first.Project, first.Commit, open[:end])
		if err != nil {
			return nil, fmt.Errorf("end rollouts of commit %s in project %d: %w", first.Commit, first.Project, err)
		}
		if r != nil {
			reports = append(reports, r)
		}
		open = open[end:]
	}
	return reports, nil
}

// endReport is nil when there is nothing to write to.
func (f *Forge) endReport(ctx context.Context, id tidelock.ProjectID, commit tidelock.CommitID, rollouts []tidelock.Rollout) (*report, error) {
	if err := f.store.LockProject(ctx, id); err != nil {
		return nil, err
	}
	project, err := f.store.Project(ctx, id)
	if err != nil {
		return nil, err
	}
	var shown []tidelock.Rollout
	for _, r := range rollouts {
		if r.Status != 0 {
			r.State, r.Message, r.FinishedAt = tidelock.RolloutSuperseded, "the agent was removed", f.now().UTC()
			shown = append(shown, r)
		}
	}
	if len(shown) == 0 || project.Archived {
		return nil, nil
	}
	r, err := f.newReport(ctx, project, commit, statusRef{name: project.DefaultBranch})
	if err != nil {
		return nil, err
	}
	return r, r.write(ctx, shown)
}

// A board is the pipeline to which jobs of rollouts of one ref are added.
type board struct {
	pipeline tidelock.Pipeline // zero before the first job
	total    int               // of statuses in it, replaced ones included
	jobs     map[string]tidelock.Status
}

// board finds the newest pipeline of external statuses under a ref.
func (r *report) board(ctx context.Context, ref statusRef) (*board, error) {
	if b := r.boards[ref]; b != nil {
		return b, nil
	}
	b := &board{jobs: map[string]tidelock.Status{}}
	newest, _, err := r.f.store.Pipelines(ctx, tidelock.PipelineFilter{
		Project: r.project.ID, Commit: r.commit, Ref: ref.name, Tag: &ref.tag, Source: tidelock.ExternalSource,
	}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil {
		return nil, err
	}
	if len(newest) > 0 {
		b.pipeline = newest[0]
		in := tidelock.StatusFilter{Project: r.project.ID, Pipeline: b.pipeline.ID}
		if _, b.total, err = r.f.store.Statuses(ctx, in, tidelock.Page{Number: 1, PerPage: 1}); err != nil {
			return nil, err
		}
		in.Stage, in.Latest = tidelock.DeployStage, true
		jobs, _, err := r.f.store.Statuses(ctx, in, tidelock.Page{})
		if err != nil {
			return nil, err
		}
		for _, j := range jobs {
			b.jobs[j.Name] = j
		}
	}
	r.boards[ref] = b
	return b, nil
}

// job writes the one job of a rollout. A job that somebody deleted with its
// pipeline is made again when there is more to say.
func (r *report) job(ctx context.Context, rollout *tidelock.Rollout) error {
	var job tidelock.Status
	if rollout.Status != 0 {
		found, err := r.f.store.Status(ctx, rollout.Status)
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return err
		}
		job = found
	}
	var at *board
	if job.ID == 0 {
		ref := shortRef(rollout.Ref)
		if ref.name == "" {
			ref = r.ref
		}
		var err error
		if at, err = r.board(ctx, ref); err != nil {
			return err
		}
		job = at.jobs[r.jobName(at, *rollout)]
	}
	if job.ID == 0 {
		return r.newJob(ctx, at, rollout)
	}
	rollout.Status = job.ID
	before := job
	r.describe(&job, *rollout)
	if sameJob(before, job) {
		return nil
	}
	job.UpdatedAt = r.now
	if err := r.f.store.SaveStatus(ctx, job); err != nil {
		return err
	}
	r.changed(job)
	return nil
}

func (r *report) changed(job tidelock.Status) {
	r.said = true
	if !slices.Contains(r.pipelines, job.Pipeline) {
		r.pipelines = append(r.pipelines, job.Pipeline)
	}
}

// newJob adds a job to the board, and begins another pipeline when there is
// none with room.
func (r *report) newJob(ctx context.Context, at *board, rollout *tidelock.Rollout) error {
	if at.pipeline.ID == 0 || at.total >= maxStatuses {
		ref := shortRef(rollout.Ref)
		if ref.name == "" {
			ref = r.ref
		}
		made, err := r.f.store.CreatePipeline(ctx, tidelock.Pipeline{
			Project: r.project.ID, Commit: r.commit, Ref: ref.name, Tag: ref.tag,
			Source: tidelock.ExternalSource, State: tidelock.StatusCreated, CreatedAt: r.now, UpdatedAt: r.now,
		})
		if err != nil {
			return err
		}
		*at = board{pipeline: made, jobs: map[string]tidelock.Status{}}
	}
	job := tidelock.Status{
		Project: r.project.ID, Pipeline: at.pipeline.ID, Commit: r.commit, Ref: at.pipeline.Ref, Tag: at.pipeline.Tag,
		Stage: tidelock.DeployStage, Name: r.jobName(at, *rollout), CreatedAt: firstOf(rollout.PendingAt, rollout.RunningAt, r.now), UpdatedAt: r.now,
	}
	r.describe(&job, *rollout)
	job, err := r.f.store.CreateStatus(ctx, job)
	if err != nil {
		return err
	}
	rollout.Status, at.jobs[job.Name] = job.ID, job
	at.total++
	r.changed(job)
	return nil
}

// jobName is the first of a rollout's possible names that no other rollout of
// the commit has in a pipeline. Objects of two kinds may be called the same,
// and so may agents of two projects.
func (r *report) jobName(at *board, rollout tidelock.Rollout) string {
	name, kind := rollout.JobName(), kindOf(rollout)
	for _, name := range []string{name, fmt.Sprintf("%s (%s)", name, kind)} {
		name = clipName(name)
		job, taken := at.jobs[name]
		if !taken || !slices.ContainsFunc(r.rollouts, func(o *tidelock.Rollout) bool { return o.ID != rollout.ID && o.Status == job.ID }) {
			return name
		}
	}
	return clipName(fmt.Sprintf("%s (%s, agent %d)", name, kind, rollout.Agent))
}

// clipName shortens a name that is too long for a job, and keeps it apart from
// others that begin like it.
func clipName(name string) string {
	if len(name) <= maxStatusText {
		return name
	}
	end := fmt.Sprintf("…%x", sha256.Sum256([]byte(name)))[:len("…")+8]
	return name[:maxStatusText-len(end)] + end
}

// describe brings a job to what a rollout is. Unlike what is posted from
// outside it may go from any state to any other.
func (r *report) describe(job *tidelock.Status, rollout tidelock.Rollout) {
	job.State = jobState(rollout)
	job.Description = jobText(rollout)
	job.TargetURL = r.timelineURL()
	job.StartedAt, job.FinishedAt = time.Time{}, time.Time{}
	if job.State != tidelock.StatusPending {
		job.StartedAt = firstOf(rollout.RunningAt, rollout.AppliedAt, rollout.HealthyAt)
	}
	if job.State.Done() {
		job.FinishedAt = cmp.Or(rollout.FinishedAt, r.now)
		if !job.StartedAt.IsZero() || job.State != tidelock.StatusCanceled {
			job.StartedAt = firstOf(job.StartedAt, job.FinishedAt)
		}
	}
	job.CreatedAt = firstOf(job.CreatedAt, job.StartedAt)
}

var jobStates = map[tidelock.RolloutState]tidelock.StatusState{
	tidelock.RolloutPending:    tidelock.StatusPending,
	tidelock.RolloutRunning:    tidelock.StatusRunning,
	tidelock.RolloutSuccess:    tidelock.StatusSuccess,
	tidelock.RolloutFailed:     tidelock.StatusFailed,
	tidelock.RolloutSuperseded: tidelock.StatusCanceled,
}

// jobState is the state of a rollout in GitLab's words. These have none for
// not knowing: the job stays unfinished, and its description says so.
func jobState(r tidelock.Rollout) tidelock.StatusState {
	state, ok := jobStates[r.State]
	switch {
	case ok:
		return state
	case r.RunningAt.IsZero() && r.AppliedAt.IsZero():
		return tidelock.StatusPending
	}
	return tidelock.StatusRunning
}

// jobText is the description of a rollout's job: one line, at most as long as
// GitLab lets one be.
func jobText(r tidelock.Rollout) string {
	text := r.Message
	switch r.State {
	case tidelock.RolloutFailed:
		text = cmp.Or(text, r.Reason, "failed")
	case tidelock.RolloutSuperseded:
		text = cmp.Or(text, "superseded")
	case tidelock.RolloutUnknown:
		text = strings.TrimSuffix("unknown: "+strings.TrimPrefix(text, "unknown: "), ": ")
	}
	text = strings.Join(strings.Fields(tidelock.Printable(text, 4*maxStatusText)), " ")
	if utf8.RuneCountInString(text) <= maxStatusText {
		return text
	}
	return string([]rune(text)[:maxStatusText-1]) + "…"
}

// timelineURL is the page that tells how the commit came into clusters; "" if
// nobody said where pages are, or if it is longer than a job can hold.
func (r *report) timelineURL() string {
	if r.f.external == nil {
		return ""
	}
	page := r.f.external.JoinPath(r.project.FullPath, "-/commit", string(r.commit), "timeline").String()
	if checkWebURL("target_url", page) != nil {
		return ""
	}
	return page
}

func sameJob(a, b tidelock.Status) bool {
	return a.State == b.State && a.Description == b.Description && a.TargetURL == b.TargetURL &&
		a.StartedAt.Equal(b.StartedAt) && a.FinishedAt.Equal(b.FinishedAt)
}

// firstOf is the first of the times that are not zero.
func firstOf(times ...time.Time) (first time.Time) {
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}
