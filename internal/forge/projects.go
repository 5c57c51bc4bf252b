package forge

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tidelock.dev"
)

// NewProject is what is said of a project to create.
type NewProject struct {
	Namespace     tidelock.NamespaceID // default: the caller's own
	Name          string               // default Path
	Path          string               // default derived from Name
	Description   string
	Visibility    tidelock.Visibility
	DefaultBranch string // default "main"
	Readme        bool   // begin with a commit of a README.md
}

// CreateProject makes a project and its empty repository.
func (f *Forge) CreateProject(ctx context.Context, p Principal, n NewProject) (tidelock.Project, error) {
	if n.Namespace == 0 {
		if p.User == nil || p.User.Namespace == 0 {
			return tidelock.Project{}, tidelock.FieldErrorf(tidelock.Invalid, "namespace", "can't be blank")
		}
		n.Namespace = p.User.Namespace
	}
	namespace, err := f.namespace(ctx, p, n.Namespace, CreateProject)
	if err != nil {
		return tidelock.Project{}, err
	}
	if namespace.Kind == tidelock.GroupNamespace && n.Visibility > namespace.Visibility {
		return tidelock.Project{}, tidelock.FieldErrorf(tidelock.Invalid, "visibility_level",
			"%s is not allowed in a %s group", n.Visibility, namespace.Visibility)
	}
	now := f.now().UTC()
	project := tidelock.Project{
		Namespace:     n.Namespace,
		Path:          cmp.Or(n.Path, pathFromName(n.Name)),
		Name:          cmp.Or(n.Name, n.Path),
		Description:   n.Description,
		Visibility:    n.Visibility,
		DefaultBranch: cmp.Or(n.DefaultBranch, "main"),
		Creator:       p.User.ID,
		CreatedAt:     now,
		UpdatedAt:     now,
	}
	if err := checkProject(project); err != nil {
		return tidelock.Project{}, err
	}
	var made tidelock.Project
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		made, err = f.store.CreateProject(ctx, project)
		return change{act: "project created", on: OnProject(made), subject: projectSubject(made), detail: made.Visibility.String()}, err
	})
	if err != nil {
		return tidelock.Project{}, err
	}
	project = made
	if err := f.repos.Create(ctx, project.ID, project.DefaultBranch); err != nil {
		undone := f.audited(context.WithoutCancel(ctx), p, func(ctx context.Context) (change, error) {
			return change{act: "project deleted", on: OnProject(project), subject: projectSubject(project), detail: "its repository could not be made"},
				f.store.DeleteProject(ctx, project.ID)
		})
		if undone != nil {
			f.log.ErrorContext(ctx, "project without repository left behind", "project", project.ID, "error", undone)
		}
		return tidelock.Project{}, fmt.Errorf("create the repository of project %d: %w", project.ID, err)
	}
	publish(f, tidelock.AccessChanged{Project: project.ID})
	if n.Readme {
		if err := f.writeReadme(ctx, p, project); err != nil {
			return tidelock.Project{}, fmt.Errorf("write the first file of project %d: %w", project.ID, err)
		}
	}
	return project, nil
}

func checkProject(p tidelock.Project) error {
	if err := checkName("name", p.Name); err != nil {
		return err
	}
	if err := checkPath("path", p.Path, false); err != nil {
		return err
	}
	if err := checkDescription(p.Description); err != nil {
		return err
	}
	if err := tidelock.ValidRef(tidelock.BranchRef(p.DefaultBranch)); err != nil {
		return tidelock.FieldErrorf(tidelock.Invalid, "default_branch", "is not a branch name")
	}
	return nil
}

// Project finds a project by id or full path (also one it had before).
func (f *Forge) Project(ctx context.Context, p Principal, idOrPath string) (tidelock.Project, error) {
	return f.ProjectFor(ctx, p, idOrPath, ReadProject)
}

// ProjectFor finds a project by id or full path for one action on it.
func (f *Forge) ProjectFor(ctx context.Context, p Principal, idOrPath string, a Action) (tidelock.Project, error) {
	if id, ok := number(idOrPath); ok {
		project, err := f.store.Project(ctx, tidelock.ProjectID(id))
		return f.allowed(ctx, p, project, err, a)
	}
	return f.ProjectAt(ctx, p, idOrPath, a)
}

// ProjectAt finds a project by full path alone, so that one named by digits is
// found too.
func (f *Forge) ProjectAt(ctx context.Context, p Principal, path string, a Action) (tidelock.Project, error) {
	project, err := f.store.ProjectByPath(ctx, strings.Trim(path, "/"))
	return f.allowed(ctx, p, project, err, a)
}

func (f *Forge) allowed(ctx context.Context, p Principal, project tidelock.Project, err error, a Action) (tidelock.Project, error) {
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return tidelock.Project{}, errNoProject()
	case err != nil:
		return tidelock.Project{}, fmt.Errorf("read a project: %w", err)
	}
	if err := f.Allow(ctx, p, a, OnProject(project)); err != nil {
		return tidelock.Project{}, err
	}
	return project, nil
}

// Projects lists what the caller may see.
func (f *Forge) Projects(ctx context.Context, p Principal, filter tidelock.ProjectFilter, page tidelock.Page) ([]tidelock.Project, int, error) {
	if err := f.Allow(ctx, p, Browse, OnForge); err != nil {
		return nil, 0, err
	}
	filter.VisibleTo = p.Viewer()
	return f.store.Projects(ctx, filter, page)
}

// ProjectEdit changes a project; nil fields stay.
type ProjectEdit struct {
	Name, Path, Description, DefaultBranch *string
	Visibility                             *tidelock.Visibility
	Archived                               *bool // needs the right to delete
}

// EditProject changes a project. A new path leaves the old one behind as a
// redirect; agents are told at once when access may have changed.
func (f *Forge) EditProject(ctx context.Context, p Principal, idOrPath string, e ProjectEdit) (tidelock.Project, error) {
	action := EditProject
	if e.Archived != nil {
		action = DeleteProject
	}
	project, err := f.ProjectFor(ctx, p, idOrPath, action)
	if err != nil {
		return tidelock.Project{}, err
	}
	// The whole row is written: another edit in between would be undone, and
	// what was just made private be public again.
	unlock := f.recording.lock(project.ID)
	defer unlock()
	project, err = f.store.Project(ctx, project.ID)
	if project, err = f.allowed(ctx, p, project, err, action); err != nil {
		return tidelock.Project{}, err
	}
	before := project
	set(&project.Name, e.Name)
	set(&project.Path, e.Path)
	set(&project.Description, e.Description)
	set(&project.DefaultBranch, e.DefaultBranch)
	set(&project.Visibility, e.Visibility)
	set(&project.Archived, e.Archived)
	project.UpdatedAt = f.now().UTC()
	if err := checkProject(project); err != nil {
		return tidelock.Project{}, err
	}
	if project.Visibility > before.Visibility {
		namespace, err := f.store.Namespace(ctx, project.Namespace)
		if err != nil {
			return tidelock.Project{}, fmt.Errorf("read the namespace of project %d: %w", project.ID, err)
		}
		if namespace.Kind == tidelock.GroupNamespace && project.Visibility > namespace.Visibility {
			return tidelock.Project{}, tidelock.FieldErrorf(tidelock.Invalid, "visibility_level",
				"%s is not allowed in a %s group", project.Visibility, namespace.Visibility)
		}
	}
	if project.DefaultBranch != before.DefaultBranch {
		if err := f.repos.Repo(project.ID).SetDefaultBranch(ctx, project.DefaultBranch); err != nil {
			return tidelock.Project{}, fmt.Errorf("set the default branch of project %d: %w", project.ID, err)
		}
	}
	var after tidelock.Project
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		after, err = f.store.UpdateProject(ctx, project)
		return change{act: "project edited", on: OnProject(after), subject: projectSubject(after), detail: differences(
			"path", before.FullPath, after.FullPath, "name", before.Name, after.Name,
			"description", "", changedOnly(before.Description, after.Description),
			"default branch", before.DefaultBranch, after.DefaultBranch,
			"visibility", before.Visibility.String(), after.Visibility.String(),
			"archived", fmt.Sprint(before.Archived), fmt.Sprint(after.Archived),
		)}, err
	})
	if err != nil {
		return tidelock.Project{}, err
	}
	project = after
	publish(f, tidelock.AccessChanged{Project: project.ID})
	if project.DefaultBranch != before.DefaultBranch {
		publish(f, tidelock.Pushed{Project: project.ID}) // agents' configuration is read from it
	}
	return project, nil
}

// DeleteProject removes a project, its repository and its agents.
func (f *Forge) DeleteProject(ctx context.Context, p Principal, idOrPath string) error {
	project, err := f.ProjectFor(ctx, p, idOrPath, DeleteProject)
	if err != nil {
		return err
	}
	return f.deleteProject(ctx, p, project)
}

func projectSubject(p tidelock.Project) string { return fmt.Sprintf("project %d %q", p.ID, p.FullPath) }

func (f *Forge) deleteProject(ctx context.Context, p Principal, project tidelock.Project) error {
	agents, _, err := f.store.Agents(ctx, tidelock.AgentFilter{Project: project.ID}, tidelock.Page{})
	if err != nil {
		return fmt.Errorf("list agents of project %d: %w", project.ID, err)
	}
	unlock := f.recording.lock(project.ID)
	defer unlock()
	var ended []*report
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		ended = nil
		for _, a := range agents {
			reports, err := f.endReports(ctx, a.ID)
			if err != nil {
				return change{}, err
			}
			ended = append(ended, reports...)
		}
		return change{act: "project deleted", on: OnProject(project), subject: projectSubject(project)}, f.store.DeleteProject(ctx, project.ID)
	})
	if err != nil {
		return err
	}
	for _, r := range ended {
		r.tell(ctx)
	}
	publish(f, tidelock.AccessChanged{Project: project.ID})
	for _, a := range agents {
		publish(f, tidelock.AgentChanged{Agent: a.ID})
	}
	if err := f.repos.Delete(ctx, project.ID); err != nil {
		return fmt.Errorf("delete the repository of project %d: %w", project.ID, err)
	}
	return nil
}

// ProtectedBranches lists a project's protected branches.
func (f *Forge) ProtectedBranches(ctx context.Context, p Principal, idOrPath string) ([]tidelock.ProtectedBranch, error) {
	project, err := f.ProjectFor(ctx, p, idOrPath, ReadProtected)
	if err != nil {
		return nil, err
	}
	return f.store.ProtectedBranches(ctx, project.ID)
}

// ProtectBranch protects the branches that a pattern matches.
func (f *Forge) ProtectBranch(ctx context.Context, p Principal, idOrPath string, b tidelock.ProtectedBranch) (tidelock.ProtectedBranch, error) {
	project, err := f.ProjectFor(ctx, p, idOrPath, Protect)
	if err != nil {
		return tidelock.ProtectedBranch{}, err
	}
	if b.Pattern == "" {
		return tidelock.ProtectedBranch{}, tidelock.FieldErrorf(tidelock.Invalid, "name", "can't be blank")
	}
	if err := tidelock.ValidRef(tidelock.BranchRef(strings.ReplaceAll(b.Pattern, "*", "x"))); err != nil {
		return tidelock.ProtectedBranch{}, tidelock.FieldErrorf(tidelock.Invalid, "name", "is not a branch name or pattern")
	}
	if err := f.checkKeys(ctx, project, b.Keys); err != nil {
		return tidelock.ProtectedBranch{}, err
	}
	b.Project = project.ID
	var made tidelock.ProtectedBranch
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		made, err = f.store.ProtectBranch(ctx, b)
		return change{
			act: "branch protected", on: OnProject(project), subject: fmt.Sprintf("branch %q", b.Pattern),
			detail: protectionDetail(b),
		}, err
	})
	if err != nil {
		return tidelock.ProtectedBranch{}, err
	}
	return made, nil
}

// UnprotectBranch removes a protection by its pattern.
func (f *Forge) UnprotectBranch(ctx context.Context, p Principal, idOrPath, pattern string) error {
	project, err := f.ProjectFor(ctx, p, idOrPath, Protect)
	if err != nil {
		return err
	}
	return f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return change{act: "branch unprotected", on: OnProject(project), subject: fmt.Sprintf("branch %q", pattern)},
			f.store.UnprotectBranch(ctx, project.ID, pattern)
	})
}

// accessChangedBelow tells of every project below a group.
func (f *Forge) accessChangedBelow(ctx context.Context, group tidelock.NamespaceID) {
	projects, _, err := f.store.Projects(ctx, tidelock.ProjectFilter{Below: group}, tidelock.Page{})
	if err != nil {
		f.log.WarnContext(ctx, "agents will notice a change of access only later", "group", group, "error", err)
		return
	}
	for _, project := range projects {
		publish(f, tidelock.AccessChanged{Project: project.ID})
	}
}

func deepestFirst(groups []tidelock.Namespace) []tidelock.Namespace {
	return slices.SortedFunc(slices.Values(groups), func(a, b tidelock.Namespace) int {
		return cmp.Compare(strings.Count(b.FullPath, "/"), strings.Count(a.FullPath, "/"))
	})
}

// number reads a positive decimal id.
func number(s string) (int64, bool) {
	id, err := strconv.ParseInt(s, 10, 64)
	return id, err == nil && id > 0 && s[0] != '+'
}

// set writes a new value where there is one.
func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}
