package forge

import (
	"context"

	"tidelock.dev"
)

// TransferProject puts a project into another group or user namespace. It
// takes the owner of the project who may create projects there; the project
// must not be more visible than its new group. The old path leads to it until
// another project takes it.
func (f *Forge) TransferProject(ctx context.Context, p Principal, idOrPath, namespace string) (tidelock.Project, error) {
	project, err := f.ProjectFor(ctx, p, idOrPath, DeleteProject)
	if err != nil {
		return tidelock.Project{}, err
	}
	to, err := f.group(ctx, p, namespace, CreateProject)
	if err != nil {
		return tidelock.Project{}, err
	}
	unlock := f.recording.lock(project.ID)
	defer unlock()
	project, err = f.store.Project(ctx, project.ID) // as it is now that nobody else edits it
	if project, err = f.allowed(ctx, p, project, err, DeleteProject); err != nil {
		return tidelock.Project{}, err
	}
	if to.Kind == tidelock.GroupNamespace && project.Visibility > to.Visibility {
		return tidelock.Project{}, tidelock.FieldErrorf(tidelock.Invalid, "visibility_level",
			"%s is not allowed in a %s group", project.Visibility, to.Visibility)
	}
	if to.ID == project.Namespace {
		return tidelock.Project{}, tidelock.Errorf(tidelock.Invalid, "Project is already in this namespace.")
	}
	var moved tidelock.Project
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		moved, err = f.store.MoveProject(ctx, project.ID, to.ID)
		return change{
			act: "project transferred", on: OnProject(moved), subject: projectSubject(moved),
			detail: differences("path", project.FullPath, moved.FullPath),
		}, err
	})
	if err != nil {
		return tidelock.Project{}, err
	}
	publish(f, tidelock.AccessChanged{Project: moved.ID})
	return moved, nil
}
