package forge

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/explain"
)

// What one answer is made of at most.
const (
	maxWhySources   = 1000
	maxWhyAppliers  = 5000
	maxWhyRelations = 300 // revisions that are compared with the commit
	maxWhyPaths     = 20  // paths of appliers that are looked at in the repository
	maxWhyRefs      = 10
)

// Why says what keeps a commit from being live, for one environment, or for
// each when that is "". A revision is the id of a commit, in full or short, or
// a branch or tag. A full id that the forge does not know is answered, and not
// an error.
//
// It tells what members may know: of appliers that belong to another project
// nothing but what the agent's own messages say, and of an agent that was not
// granted the project its name only if the caller may read it.
func (f *Forge) Why(ctx context.Context, p Principal, project tidelock.Project, rev, environment string) ([]tidelock.Verdict, error) {
	if err := f.Allow(ctx, p, ReadDelivery, OnProject(project)); err != nil {
		return nil, err
	}
	w := inquiry{
		f: f, p: p, project: project, environment: environment,
		relations: map[tidelock.CommitID]explain.Relation{}, cargoes: map[cargoKey]cargo{}, agents: map[tidelock.AgentID]*inquired{},
		wishes: map[wishKey]wish{}, looks: map[string]look{}, carries: map[tidelock.Digest]bool{},
	}
	w.base = explain.Facts{Now: f.now().UTC(), Project: project.FullPath, Commit: tidelock.CommitID(rev), Environment: environment}
	commit, err := f.repos.Repo(project.ID).Commit(ctx, rev)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound && tidelock.ValidCommit(w.base.Commit) == nil:
		w.base.Missing = true
		return []tidelock.Verdict{explain.Explain(w.base)}, nil
	case err != nil:
		return nil, err
	}
	w.base.Commit = commit.ID
	if err := w.read(ctx); err != nil {
		return nil, err
	}
	verdicts, err := w.places(ctx)
	if err != nil {
		return nil, err
	}
	return explain.Sum(verdicts, environment != ""), nil
}

// An inquiry gathers the facts of one answer.
type inquiry struct {
	f           *Forge
	p           Principal
	project     tidelock.Project
	environment string // asked for; "" for all
	base        explain.Facts

	sources       []tidelock.AgentSource
	observed      map[sourceOf][]*tidelock.Observation // appliers
	fetches       map[sourceOf]*tidelock.Observation
	announcements map[sourceOf]*tidelock.Announcement
	wasHead       map[sourceOf]bool
	placed        map[placeID]string           // the environments of appliers
	rolled        map[placeID]tidelock.Rollout // of the commit
	builds        []tidelock.Build             // newest first
	environments  []tidelock.Environment

	agents    map[tidelock.AgentID]*inquired
	carries   map[tidelock.Digest]bool // artifacts that hold what is packaged of the commit
	relations map[tidelock.CommitID]explain.Relation
	cargoes   map[cargoKey]cargo
	wishes    map[wishKey]wish
	changed   []string // paths that the commit changes
	knows     bool     // changed has been read
	looks     map[string]look
}

// An inquired agent is one that some source belongs to.
type inquired struct {
	tidelock.Agent
	served bool
	path   string // "" unless the caller may read the agent
	away   time.Time
	why    string
	others map[tidelock.ObjectID]*tidelock.Observation
	acted  map[tidelock.ObjectKind]time.Time
}

// read reads what all places share.
func (w *inquiry) read(ctx context.Context) (err error) {
	f, id := w.f, w.project.ID
	if w.base.Refs, err = f.repos.Repo(id).RefsContaining(ctx, w.base.Commit); err != nil {
		return err
	}
	w.base.Refs = w.base.Refs[:min(len(w.base.Refs), maxWhyRefs)]
	pushes, _, err := f.store.Pushes(ctx, tidelock.PushFilter{Project: id, Commit: w.base.Commit}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil {
		return fmt.Errorf("list pushes of commit %s: %w", w.base.Commit, err)
	}
	if len(pushes) > 0 {
		w.base.PushedAt = pushes[0].At
	}
	if w.sources, err = f.store.SourcesOfProject(ctx, id, maxWhySources); err != nil {
		return fmt.Errorf("list the sources of project %d: %w", id, err)
	}
	w.sources = slices.DeleteFunc(w.sources, func(s tidelock.AgentSource) bool { return s.Source.Kind() == tidelock.ImageRepository })
	if err := w.readAgents(ctx); err != nil {
		return err
	}
	if err := w.readObservations(ctx); err != nil {
		return err
	}
	if err := w.readAnnouncements(ctx); err != nil {
		return err
	}
	if err := w.readRollouts(ctx); err != nil {
		return err
	}
	if w.environments, _, err = f.store.Environments(ctx, tidelock.EnvironmentFilter{Project: id}, tidelock.Page{}); err != nil {
		return fmt.Errorf("list environments of project %d: %w", id, err)
	}
	if slices.ContainsFunc(w.sources, func(s tidelock.AgentSource) bool { return s.Source.Kind().OfImage() }) {
		w.builds, _, err = f.store.Builds(ctx, tidelock.BuildFilter{Project: id, LatestOfApplications: true}, tidelock.Page{Number: 1, PerPage: 500})
		if err != nil {
			return fmt.Errorf("list builds of project %d: %w", id, err)
		}
		own, _, err := f.store.Builds(ctx, tidelock.BuildFilter{Project: id, Commit: w.base.Commit}, tidelock.Page{Number: 1, PerPage: 100})
		if err != nil {
			return fmt.Errorf("list builds of commit %s: %w", w.base.Commit, err)
		}
		for _, b := range own {
			if b.Digest != "" {
				w.carries[b.Digest] = true
			}
		}
		w.builds = append(own, w.builds...)
	}
	return nil
}

func (w *inquiry) readAgents(ctx context.Context) error {
	for _, s := range w.sources {
		if w.agents[s.Agent] != nil {
			continue
		}
		agent, err := w.f.store.Agent(ctx, s.Agent)
		if tidelock.KindOf(err) == tidelock.NotFound {
			continue // deleted just now
		}
		if err != nil {
			return fmt.Errorf("read agent %d: %w", s.Agent, err)
		}
		a := &inquired{Agent: agent, others: map[tidelock.ObjectID]*tidelock.Observation{}, acted: map[tidelock.ObjectKind]time.Time{}}
		if a.served, err = w.f.AgentMayReport(ctx, agent, w.project); err != nil {
			return fmt.Errorf("decide whether agent %d may report about project %d: %w", agent.ID, w.project.ID, err)
		}
		config, err := w.f.store.Project(ctx, agent.Project)
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return fmt.Errorf("read project %d: %w", agent.Project, err)
		}
		if err == nil {
			switch err := w.f.Allow(ctx, w.p, ReadAgents, OnProject(config)); {
			case err == nil:
				a.path = config.FullPath + "/" + agent.Name
			case !unseen(err):
				return err
			}
		}
		if a.away, a.why, err = w.f.agentAway(ctx, agent.ID); err != nil {
			return fmt.Errorf("read the presence of agent %d: %w", agent.ID, err)
		}
		w.agents[agent.ID] = a
	}
	w.sources = slices.DeleteFunc(w.sources, func(s tidelock.AgentSource) bool { return w.agents[s.Agent] == nil })
	return nil
}

func (w *inquiry) readObservations(ctx context.Context) error {
	list, err := w.f.store.Observations(ctx, tidelock.ObservationFilter{Project: w.project.ID})
	if err != nil {
		return fmt.Errorf("list observations of project %d: %w", w.project.ID, err)
	}
	w.observed, w.fetches = map[sourceOf][]*tidelock.Observation{}, map[sourceOf]*tidelock.Observation{}
	for i, o := range list[:min(len(list), maxWhyAppliers)] {
		if !o.Object.Applies() {
			w.fetches[sourceOf{o.Agent, tidelock.SourceID(o.Object)}] = &list[i]
			continue
		}
		at := sourceOf{o.Agent, o.Source}
		w.observed[at] = append(w.observed[at], &list[i])
		if a := w.agents[o.Agent]; a != nil {
			a.others[o.Object] = &list[i]
			kind, _, _ := o.Object.Split()
			for _, outcome := range o.Outcomes {
				if outcome.AttemptedAt.After(a.acted[kind]) {
					a.acted[kind] = outcome.AttemptedAt
				}
			}
		}
	}
	return nil
}

func (w *inquiry) readAnnouncements(ctx context.Context) error {
	w.announcements, w.wasHead = map[sourceOf]*tidelock.Announcement{}, map[sourceOf]bool{}
	latest, _, err := w.f.store.Announcements(ctx, tidelock.AnnouncementFilter{Project: w.project.ID, Latest: true}, tidelock.Page{Number: 1, PerPage: maxWhySources})
	if err != nil {
		return fmt.Errorf("list announcements of project %d: %w", w.project.ID, err)
	}
	for i, a := range latest {
		w.announcements[sourceOf{a.Agent, a.Source}] = &latest[i]
	}
	own, _, err := w.f.store.Announcements(ctx, tidelock.AnnouncementFilter{Project: w.project.ID, Commit: w.base.Commit}, tidelock.Page{Number: 1, PerPage: maxWhySources})
	if err != nil {
		return fmt.Errorf("list announcements of commit %s: %w", w.base.Commit, err)
	}
	for _, a := range own {
		w.wasHead[sourceOf{a.Agent, a.Source}] = true
	}
	return nil
}

func (w *inquiry) readRollouts(ctx context.Context) error {
	w.placed, w.rolled = map[placeID]string{}, map[placeID]tidelock.Rollout{}
	all := tidelock.Page{Number: 1, PerPage: maxWhyAppliers}
	newest, _, err := w.f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: w.project.ID, Newest: true}, all)
	if err != nil {
		return fmt.Errorf("list rollouts of project %d: %w", w.project.ID, err)
	}
	own, _, err := w.f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: w.project.ID, Commit: w.base.Commit}, all)
	if err != nil {
		return fmt.Errorf("list rollouts of commit %s: %w", w.base.Commit, err)
	}
	for _, r := range own {
		w.rolled[placeID{r.Agent, r.Applier}] = r
		w.wasHead[sourceOf{r.Agent, r.Source}] = true
	}
	for _, r := range append(newest, own...) {
		if at := (placeID{r.Agent, r.Applier}); r.Environment != "" && w.placed[at] == "" {
			w.placed[at] = r.Environment
		}
	}
	return nil
}

// places explains each place that counts.
func (w *inquiry) places(ctx context.Context) ([]tidelock.Verdict, error) {
	var verdicts []tidelock.Verdict
	add := func(facts explain.Facts) { verdicts = append(verdicts, explain.Explain(facts)) }
	for _, s := range w.sources {
		agent := w.agents[s.Agent]
		facts := w.base
		facts.Agent, facts.AgentName, facts.AgentPath, facts.Away, facts.AwayWhy = agent.ID, agent.Name, agent.path, agent.away, agent.why
		facts.Others, facts.Acted = agent.others, agent.acted
		if !agent.served || s.Project != w.project.ID {
			if !agent.served {
				facts.Source = tidelock.AgentSource{State: tidelock.NotServed, Since: s.Since}
				if agent.path == "" {
					facts.Agent, facts.AgentName = 0, ""
				} else {
					facts.Source.Source = s.Source
				}
				add(facts)
			}
			continue // what was granted just now is about to be looked at
		}
		if err := w.source(ctx, s, &facts); err != nil {
			return nil, err
		}
		at := sourceOf{s.Agent, s.Source}
		for _, o := range w.observed[at] {
			facts := facts
			facts.Environment = w.environmentOf(agent, o)
			if w.environment != "" && facts.Environment != w.environment {
				continue
			}
			if err := w.applier(ctx, s, o, &facts); err != nil {
				return nil, err
			}
			add(facts)
		}
		if len(w.observed[at]) == 0 && w.goesTo(agent) {
			add(facts)
		}
	}
	switch {
	case len(verdicts) > 0:
		return verdicts, nil
	case w.environment != "" && len(w.sources) > 0:
		return []tidelock.Verdict{{
			Commit: w.base.Commit, Environment: w.environment, Code: tidelock.CauseUnknown,
			Sentence: fmt.Sprintf("nothing that is known to deploy %s goes to %s", w.project.FullPath, tidelock.Printable(w.environment, 200)),
			Evidence: []tidelock.Evidence{},
		}}, nil
	}
	return []tidelock.Verdict{explain.Explain(w.base)}, nil
}

// goesTo reports whether a source that nothing applies may be for the
// environment that was asked for.
func (w *inquiry) goesTo(agent *inquired) bool {
	return w.environment == "" || slices.ContainsFunc(w.environments, func(e tidelock.Environment) bool {
		return e.Name == w.environment && e.Agent == agent.ID
	})
}

// environmentOf is the environment that an applier deploys to: the one that
// its rollouts were reported to or else, by the same rules, the one that they
// will be.
func (w *inquiry) environmentOf(agent *inquired, o *tidelock.Observation) string {
	if name := w.placed[placeID{o.Agent, o.Object}]; name != "" {
		return name
	}
	_, namespace, _ := o.Object.Split()
	namespace = cmp.Or(o.Namespace, namespace)
	named := func(is func(tidelock.Environment) bool) string {
		for _, e := range w.environments {
			if e.Agent == agent.ID && is(e) {
				return e.Name
			}
		}
		return ""
	}
	name := named(func(e tidelock.Environment) bool { return pathNames(e.FluxResourcePath, o.Object) })
	if name == "" {
		name = o.Environment
	}
	return cmp.Or(name,
		named(func(e tidelock.Environment) bool {
			return e.KubernetesNamespace == namespace && e.FluxResourcePath == ""
		}),
		agent.Name+"/"+namespace)
}

// source gathers the facts of a source that is served.
func (w *inquiry) source(ctx context.Context, s tidelock.AgentSource, facts *explain.Facts) error {
	at := sourceOf{s.Agent, s.Source}
	key := wishKey{s.Source.Kind(), s.Image, s.Spec}
	want, known := w.wishes[key]
	if !known {
		var err error
		if want, err = w.f.wish(ctx, w.project, s); err != nil {
			return fmt.Errorf("find what %s should have: %w", s.Source, err)
		}
		w.wishes[key] = want
	}
	// What an agent that is away was told last may be long ago.
	switch {
	case want.gone:
		s.Wanted, s.Digest = "", ""
		if s.State != tidelock.Unresolved {
			s.State, s.Message = tidelock.Unresolved, "nothing matches it"
		}
	case want.known:
		s.Wanted, s.Digest, s.Ref = want.commit, want.digest, want.ref
		if s.State == tidelock.Unresolved {
			s.State = tidelock.Sent
		}
	}
	if want.held != "" {
		s.State, s.Message = tidelock.Held, want.held
	} else if s.State == tidelock.Held {
		s.State = tidelock.Sent
	}
	facts.Source, facts.WasHead = s, w.wasHead[at]
	facts.Fetch = w.fetches[at]
	if a := w.announcements[at]; a != nil && w.about(*a, s) {
		facts.Announcement = a
	}
	if fetch := facts.Fetch; fetch != nil && fetch.Revision != "" {
		facts.Source.Revision = fetch.Revision
	}
	if s.Source.Kind().OfImage() {
		if err := w.packaging(ctx, s, facts); err != nil {
			return err
		}
	}
	var err error
	if facts.Head, err = w.carrying(ctx, cargo{s.Wanted, s.Digest}); err != nil {
		return err
	}
	facts.Fetched, err = w.revision(ctx, s, facts.Source.Revision)
	return err
}

// about reports whether an announcement is of what the source should have now.
func (w *inquiry) about(a tidelock.Announcement, s tidelock.AgentSource) bool {
	return !a.Goal().None() && a.Goal().Same(tidelock.Goal{Commit: s.Wanted, Digest: s.Digest})
}

// packaging finds the build by which the commit comes to the image that a
// source follows: of the commit, or else of a later one that contains it. One
// of an earlier commit will do where that was looked at and nothing had changed.
func (w *inquiry) packaging(ctx context.Context, s tidelock.AgentSource, facts *explain.Facts) error {
	facts.Packs = len(w.builds) > 0
	if s.Image == 0 || !facts.Packs {
		return nil
	}
	image, err := w.f.store.Image(ctx, s.Image)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read image %d: %w", s.Image, err)
	}
	var unchanged *tidelock.Build
	for i, b := range w.builds {
		if b.Application != "" && b.Image != image.Name || b.Application == "" && b.State != tidelock.StatusFailed {
			continue
		}
		relation, err := w.relation(ctx, b.Commit)
		if err != nil {
			return err
		}
		switch {
		case relation == explain.Same || relation == explain.Contains:
			if facts.Build == nil || facts.Build.State == tidelock.StatusFailed && b.State != tidelock.StatusFailed && relation == explain.Same {
				facts.Build = &w.builds[i]
			}
		case relation == explain.Before && b.Digest != "" && b.Digest == s.Digest && unchanged == nil:
			unchanged = &w.builds[i]
		}
	}
	if facts.Build != nil || unchanged == nil {
		return nil
	}
	// Whatever was packaged last holds the commit too, if the head of its
	// branch was looked at since.
	head, err := w.f.store.Head(ctx, w.project.ID, unchanged.Ref)
	if err != nil {
		if tidelock.KindOf(err) == tidelock.NotFound {
			return nil
		}
		return err
	}
	relation, err := w.relation(ctx, head.Commit)
	if err != nil || relation != explain.Same && relation != explain.Contains {
		return err
	}
	waiting, err := w.f.store.UndeliveredHeads(ctx, w.project.ID, 1000)
	if err != nil {
		return fmt.Errorf("list what is to be packaged of project %d: %w", w.project.ID, err)
	}
	if slices.ContainsFunc(waiting, func(h tidelock.Head) bool { return h.Ref == unchanged.Ref }) {
		return nil
	}
	facts.Build, facts.Untouched = unchanged, true
	w.carries[unchanged.Digest] = true
	return nil
}

// applier gathers the facts of an applier.
func (w *inquiry) applier(ctx context.Context, s tidelock.AgentSource, o *tidelock.Observation, facts *explain.Facts) error {
	facts.Applier = o
	rollout, rolled := w.rolled[placeID{o.Agent, o.Object}]
	facts.WasHead = facts.WasHead || rolled
	if rollout.Reason == reasonVersionKept {
		facts.Kept = rollout.Message
	}
	var err error
	if facts.Applied, err = w.revision(ctx, s, o.Revision); err != nil {
		return err
	}
	if facts.Attempted, err = w.revision(ctx, s, o.Attempted); err != nil {
		return err
	}
	facts.Other = o.Attempted != "" && o.Attempted != o.Revision
	facts.Newer = facts.Source.Revision != "" && facts.Source.Revision != o.Revision
	if s.Source.Kind() != tidelock.GitRepository {
		return nil
	}
	switch {
	case facts.Applied == explain.Same && o.State == tidelock.ObservedReady && o.Object.Applies():
		facts.Untouched, err = w.untouched(ctx, o)
	case o.Reason == "BuildFailed":
		facts.Broken, err = w.broken(ctx, s, o)
	case o.Reason == "ArtifactFailed":
		facts.Mended, err = w.has(ctx, o)
	}
	return err
}

// revision is the relation of what a revision of a source carries.
func (w *inquiry) revision(ctx context.Context, s tidelock.AgentSource, text string) (explain.Relation, error) {
	c, err := w.cargo(ctx, s, text)
	if err != nil {
		return explain.None, err
	}
	return w.carrying(ctx, c)
}

func (w *inquiry) carrying(ctx context.Context, c cargo) (explain.Relation, error) {
	if w.carries[c.digest] {
		return explain.Same, nil
	}
	return w.relation(ctx, c.commit)
}

func (w *inquiry) cargo(ctx context.Context, s tidelock.AgentSource, text string) (cargo, error) {
	key := cargoKey{s.Source.Kind(), s.Image, text}
	c, known := w.cargoes[key]
	if known || text == "" || len(w.cargoes) >= maxWhyRelations {
		return c, nil
	}
	own, err := w.f.ownCommits(ctx, w.project.ID, map[tidelock.SourceID][]string{s.Source: {text}})
	if err == nil {
		c, err = w.f.cargoOf(ctx, w.project.ID, s, text, own)
	}
	if err != nil {
		return c, fmt.Errorf("find the commit of revision %q: %w", text, err)
	}
	w.cargoes[key] = c
	return c, nil
}

// relation says what a commit has to do with the one in question.
func (w *inquiry) relation(ctx context.Context, commit tidelock.CommitID) (explain.Relation, error) {
	if commit == "" {
		return explain.None, nil
	}
	if r, known := w.relations[commit]; known {
		return r, nil
	}
	if len(w.relations) >= maxWhyRelations {
		return explain.None, nil
	}
	r := explain.Apart
	switch later, err := w.f.contains(ctx, w.project.ID, commit, w.base.Commit); {
	case tidelock.KindOf(err) == tidelock.NotFound:
		r = explain.None // it is in the repository no more
	case err != nil:
		return r, fmt.Errorf("compare commit %s: %w", commit, err)
	case commit == w.base.Commit:
		r = explain.Same
	case later:
		r = explain.Contains
	default:
		earlier, err := w.f.contains(ctx, w.project.ID, w.base.Commit, commit)
		if err != nil {
			return r, fmt.Errorf("compare commit %s: %w", commit, err)
		}
		if earlier {
			r = explain.Before
		}
	}
	w.relations[commit] = r
	return r, nil
}
