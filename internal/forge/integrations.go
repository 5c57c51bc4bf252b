package forge

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"tidelock.dev"
)

// integrationStore is what the rules remember of integrations.
type integrationStore interface {
	// SaveIntegration makes the integration of a kind in a project, or writes
	// all of it but its creation, and forgets failures.
	SaveIntegration(context.Context, tidelock.Integration) (tidelock.Integration, error)
	Integration(context.Context, tidelock.ProjectID, tidelock.IntegrationKind) (tidelock.Integration, error)
	Integrations(context.Context, tidelock.ProjectID) ([]tidelock.Integration, error)
	// DeleteIntegration removes it with what it told and what waits for it.
	DeleteIntegration(context.Context, tidelock.ProjectID, tidelock.IntegrationKind) error
}

// UnusedIntegrationKinds are GitLab's kinds of events that no integration here
// tells of.
var UnusedIntegrationKinds = []string{
	"push", "issues", "incident", "confidential_issues", "merge_requests", "note", "confidential_note", "tag_push", "wiki_page", "job",
	"alert", "vulnerability",
}

// maxChannel bounds the names of channels and of whom messages are from.
const maxChannel = 255

// IntegrationFields make or change an integration; nil fields stay as they
// are, and as they are by default in a new one.
type IntegrationFields struct {
	URL               *tidelock.Secret
	Username          *string
	Channel           *string
	Pipelines         *bool
	PipelineChannel   *string
	Deployments       *bool
	DeploymentChannel *string
	OnlyBroken        *bool
	Branches          *tidelock.Branches
	Unused            map[string]bool // of UnusedIntegrationKinds; those absent stay
}

func (f IntegrationFields) apply(i *tidelock.Integration) {
	set(&i.URL, f.URL)
	set(&i.Username, f.Username)
	set(&i.Channel, f.Channel)
	set(&i.Pipelines, f.Pipelines)
	set(&i.PipelineChannel, f.PipelineChannel)
	set(&i.Deployments, f.Deployments)
	set(&i.DeploymentChannel, f.DeploymentChannel)
	set(&i.OnlyBroken, f.OnlyBroken)
	set(&i.Branches, f.Branches)
	unused := []string{}
	for _, kind := range UnusedIntegrationKinds {
		said, ok := f.Unused[kind]
		if !ok {
			said = slices.Contains(i.Unused, kind)
		}
		if said {
			unused = append(unused, kind)
		}
	}
	i.Unused = unused
}

// Integrations lists the integrations of a project, secrets included: what of
// them may be shown is for the surface to say.
func (f *Forge) Integrations(ctx context.Context, p Principal, project tidelock.Project) ([]tidelock.Integration, error) {
	if err := f.Allow(ctx, p, ReadIntegrations, OnProject(project)); err != nil {
		return nil, err
	}
	return f.store.Integrations(ctx, project.ID)
}

// Integration reads an integration of a project, and the newest of the calls
// that were made for it; without any, that is zero.
func (f *Forge) Integration(ctx context.Context, p Principal, project tidelock.Project, kind tidelock.IntegrationKind) (tidelock.Integration, tidelock.Attempt, error) {
	return f.integrationFor(ctx, p, project, kind, ReadIntegrations)
}

func (f *Forge) integrationFor(ctx context.Context, p Principal, project tidelock.Project, kind tidelock.IntegrationKind, a Action) (tidelock.Integration, tidelock.Attempt, error) {
	if err := f.Allow(ctx, p, a, OnProject(project)); err != nil {
		return tidelock.Integration{}, tidelock.Attempt{}, err
	}
	found, err := f.store.Integration(ctx, project.ID, kind)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Integration{}, tidelock.Attempt{}, errNoIntegration()
	}
	if err != nil {
		return tidelock.Integration{}, tidelock.Attempt{}, err
	}
	calls, _, err := f.store.Deliveries(ctx, tidelock.DeliveryFilter{Hook: found.Hook}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil {
		return tidelock.Integration{}, tidelock.Attempt{}, err
	}
	if len(calls) == 0 {
		return found, tidelock.Attempt{}, nil
	}
	return found, calls[0].Attempt, nil
}

func errNoIntegration() error {
	return tidelock.Errorf(tidelock.NotFound, "Integration Not Found")
}

// SaveIntegration makes an integration or changes it, and ends its being held
// for failures. Unless told otherwise a new one tells of all branches.
func (f *Forge) SaveIntegration(ctx context.Context, p Principal, project tidelock.Project, kind tidelock.IntegrationKind, fields IntegrationFields) (tidelock.Integration, error) {
	if err := f.Allow(ctx, p, ManageIntegrations, OnProject(project)); err != nil {
		return tidelock.Integration{}, err
	}
	var saved tidelock.Integration
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		if err := f.store.LockProject(ctx, project.ID); err != nil { // edits must not undo each other
			return change{}, err
		}
		act := "integration changed"
		i, err := f.store.Integration(ctx, project.ID, kind)
		if tidelock.KindOf(err) == tidelock.NotFound {
			act, err = "integration created", nil
			i = tidelock.Integration{
				Project: project.ID, Kind: kind, Pipelines: true, Deployments: true, Branches: tidelock.EveryBranch, CreatedAt: f.now().UTC(),
			}
		}
		if err != nil {
			return change{}, err
		}
		fields.apply(&i)
		if err := f.checkIntegration(i); err != nil {
			return change{}, err
		}
		i.UpdatedAt = f.now().UTC()
		if saved, err = f.store.SaveIntegration(ctx, i); err != nil {
			return change{}, err
		}
		return integrationChange(act, project, saved), nil
	})
	if err != nil {
		return tidelock.Integration{}, err
	}
	publish(f, tidelock.HooksDue{Project: project.ID}) // what waited for a held one may go now
	return saved, nil
}

// DeleteIntegration removes an integration and what waited for it.
func (f *Forge) DeleteIntegration(ctx context.Context, p Principal, project tidelock.Project, kind tidelock.IntegrationKind) error {
	i, _, err := f.integrationFor(ctx, p, project, kind, ManageIntegrations)
	if err != nil {
		return err
	}
	return f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return integrationChange("integration deleted", project, i), f.store.DeleteIntegration(ctx, project.ID, kind)
	})
}

// integrationChange names no more of the URL than its host: the rest is
// secret.
func integrationChange(act string, project tidelock.Project, i tidelock.Integration) change {
	words := []string{fmt.Sprintf("calls %s for %s branches", i.Host(), strings.ReplaceAll(string(i.Branches), "_", " "))}
	if to := i.To(); to != "" {
		words = append(words, fmt.Sprintf("channel %q", to))
	}
	if i.OnlyBroken {
		words = append(words, "only what failed")
	}
	if !i.Active() {
		words = append(words, "tells nothing")
	}
	return change{act: act, on: OnProject(project), subject: fmt.Sprintf("integration %s", i.Kind), detail: strings.Join(words, ", ")}
}

// channelPattern takes what chats call channels, rooms and people, and lists
// of them as GitLab does, but nothing that is markup.
var channelPattern = regexp.MustCompile(`^[^\s<>&|"'` + "`" + `\x00-\x1f\x7f]*$`)

func (f *Forge) checkIntegration(i tidelock.Integration) error {
	if i.URL.Reveal() == "" {
		return tidelock.FieldErrorf(tidelock.Invalid, "webhook", "can't be blank")
	}
	u, err := tidelock.ParseHookURL(i.URL.Reveal())
	if err == nil {
		err = f.checkHookURL(u)
	}
	if e, ok := errors.AsType[*tidelock.Error](err); ok {
		return tidelock.FieldErrorf(e.Kind, "webhook", "%s", e.Message) // it is called so here
	}
	if err != nil {
		return err
	}
	for field, channel := range map[string]string{
		"channel": i.Channel, "pipeline_channel": i.PipelineChannel, "deployment_channel": i.DeploymentChannel,
	} {
		if len(channel) > maxChannel || !utf8.ValidString(channel) || !channelPattern.MatchString(channel) {
			return tidelock.FieldErrorf(tidelock.Invalid, field, "is not the name of a channel")
		}
	}
	if i.Username != "" {
		if err := checkName("username", i.Username); err != nil {
			return err
		}
	}
	switch i.Branches {
	case tidelock.EveryBranch, tidelock.DefaultBranch, tidelock.ProtectedBranches, tidelock.DefaultOrProtected:
		return nil
	}
	return tidelock.FieldErrorf(tidelock.Invalid, "branches_to_be_notified", "does not have a valid value")
}
