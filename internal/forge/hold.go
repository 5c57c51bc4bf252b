package forge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/signing"
)

// reportRuleStore is what the rules remember of reports that must be there.
type reportRuleStore interface {
	// ReportRules lists those of a project in order of id.
	ReportRules(context.Context, tidelock.ProjectID) ([]tidelock.ReportRule, error)
	// AddReportRule is a Conflict for a type that has a rule.
	AddReportRule(context.Context, tidelock.ReportRule) (tidelock.ReportRule, error)
	RemoveReportRule(ctx context.Context, project tidelock.ProjectID, id int64) error
}

// A HoldError says that an artifact is not announced yet, because a report is
// missing that a rule of its project wants.
type HoldError struct {
	Type   string
	Signed bool      // it must be signed
	Since  time.Time // when the artifact got its tag
}

func (e *HoldError) Error() string {
	kind := "report"
	if e.Signed {
		kind = "signed report"
	}
	return fmt.Sprintf("waits for a %s of type %s since %s", kind, e.Type, e.Since.UTC().Format(time.RFC3339))
}

// Unwrap gives the error its kind: it may go away by itself.
func (e *HoldError) Unwrap() error { return tidelock.Errorf(tidelock.Unavailable, "%s", e.Error()) }

// maxReports bounds how many reports of one type are looked at, newest first.
const maxReports = 50

// held is a *HoldError while an artifact lacks a report.
func (f *Forge) held(ctx context.Context, i tidelock.Image, digest tidelock.Digest, since time.Time) error {
	rules, err := f.store.ReportRules(ctx, i.Project)
	if err != nil {
		return fmt.Errorf("list the report rules of project %d: %w", i.Project, err)
	}
	for _, rule := range rules {
		there, err := f.reported(ctx, i, digest, rule)
		if err != nil {
			return err
		}
		if !there {
			return &HoldError{Type: rule.Type, Signed: rule.Key != "", Since: since}
		}
	}
	return nil
}

// reported reports whether an artifact has what a rule wants.
func (f *Forge) reported(ctx context.Context, i tidelock.Image, digest tidelock.Digest, rule tidelock.ReportRule) (bool, error) {
	reports, _, err := f.store.Artifacts(ctx, tidelock.ArtifactFilter{Image: i.ID, Subject: digest, Type: rule.Type}, tidelock.Page{Number: 1, PerPage: maxReports})
	if err != nil {
		return false, fmt.Errorf("list the reports of %s: %w", digest, err)
	}
	if rule.Key == "" {
		return len(reports) > 0, nil
	}
	keys, err := signing.ParsePublicKeys([]byte(rule.Key))
	if err != nil {
		return false, fmt.Errorf("read the key of report rule %d: %w", rule.ID, err)
	}
	for _, report := range reports {
		_, err := f.verify(ctx, keys, i, report.Digest)
		if err == nil {
			return true, nil
		}
		if tidelock.KindOf(err) != tidelock.Denied {
			return false, err
		}
	}
	return false, nil
}

// ReportRules lists the rules of a project.
func (f *Forge) ReportRules(ctx context.Context, p Principal, idOrPath string) ([]tidelock.ReportRule, error) {
	project, err := f.ProjectFor(ctx, p, idOrPath, ReadReportRules)
	if err != nil {
		return nil, err
	}
	return f.store.ReportRules(ctx, project.ID)
}

const maxReportRules = 20

// AddReportRule holds, from now on, what lacks a report of a type.
func (f *Forge) AddReportRule(ctx context.Context, p Principal, idOrPath string, rule tidelock.ReportRule) (tidelock.ReportRule, error) {
	project, err := f.ProjectFor(ctx, p, idOrPath, ManageReportRules)
	if err != nil {
		return tidelock.ReportRule{}, err
	}
	if !registry.ValidMediaType(rule.Type) {
		return tidelock.ReportRule{}, tidelock.FieldErrorf(tidelock.Invalid, "artifact_type", "is not a media type such as application/sarif+json")
	}
	detail := "of anybody who may push"
	if rule.Key != "" {
		keys, err := signing.ParsePublicKeys([]byte(rule.Key))
		if err != nil {
			return tidelock.ReportRule{}, tidelock.FieldErrorf(tidelock.Invalid, "public_key", "cannot be used: %v", err)
		}
		detail = "signed by " + keys[0].ID
		for _, k := range keys[1:] {
			detail += " or " + k.ID
		}
	}
	rule.Project, rule.CreatedAt = project.ID, f.now().UTC()
	rule.Creator, _ = p.ids()
	var made tidelock.ReportRule
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		rules, err := f.store.ReportRules(ctx, project.ID)
		if err != nil {
			return change{}, err
		}
		if len(rules) >= maxReportRules {
			return change{}, tidelock.Errorf(tidelock.Invalid, "a project has at most %d report rules", maxReportRules)
		}
		made, err = f.store.AddReportRule(ctx, rule)
		return change{act: "report rule created", on: OnProject(project), subject: rule.Type, detail: detail}, err
	})
	if err != nil {
		return tidelock.ReportRule{}, err
	}
	publish(f, tidelock.Pushed{Project: project.ID})
	return made, nil
}

// RemoveReportRule releases what waits for nothing else.
func (f *Forge) RemoveReportRule(ctx context.Context, p Principal, idOrPath string, id int64) error {
	project, err := f.ProjectFor(ctx, p, idOrPath, ManageReportRules)
	if err != nil {
		return err
	}
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		rules, err := f.store.ReportRules(ctx, project.ID)
		if err != nil {
			return change{}, err
		}
		c := change{act: "report rule deleted", on: OnProject(project)}
		for _, rule := range rules {
			if rule.ID == id {
				c.subject = rule.Type
			}
		}
		return c, f.store.RemoveReportRule(ctx, project.ID, id)
	})
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Errorf(tidelock.NotFound, "Report Rule Not Found")
	}
	if err == nil {
		publish(f, tidelock.Pushed{Project: project.ID})
	}
	return err
}

// An ArtifactView is an artifact and what is known of it beside its manifest.
type ArtifactView struct {
	tidelock.Artifact
	Tags     []string
	Attached []tidelock.Artifact // newest first: signatures, SBOMs, reports
	Signers  []string            // ids of the forge's own keys that signed it
	Held     *HoldError          // why it is not announced; nil when nothing is missing
}

// maxAttached bounds the attached artifacts of a view.
const maxAttached = 100

// ViewArtifact reads an artifact by tag or digest, with what is attached to it.
func (f *Forge) ViewArtifact(ctx context.Context, p Principal, project tidelock.Project, image, reference string) (ArtifactView, error) {
	i, err := f.imageOf(ctx, p, project, image, ReadImages)
	if err != nil {
		return ArtifactView{}, err
	}
	a, err := f.artifact(ctx, i, reference)
	if err != nil {
		return ArtifactView{}, err
	}
	v := ArtifactView{Artifact: a}
	tags, err := f.store.TagsOf(ctx, i.ID, a.Digest)
	if err != nil {
		return v, fmt.Errorf("list the tags of artifact %s: %w", a.Digest, err)
	}
	since := a.PushedAt
	for _, t := range tags {
		v.Tags = append(v.Tags, t.Name)
		if t.Name == reference {
			since = t.MovedAt
		}
	}
	v.Attached, _, err = f.store.Artifacts(ctx, tidelock.ArtifactFilter{Image: i.ID, Subject: a.Digest}, tidelock.Page{Number: 1, PerPage: maxAttached})
	if err != nil {
		return v, fmt.Errorf("list what is attached to artifact %s: %w", a.Digest, err)
	}
	if keys := f.signingKeys(); len(keys) > 0 {
		verified, err := f.verify(ctx, keys, i, a.Digest)
		if err != nil && tidelock.KindOf(err) != tidelock.Denied {
			return v, err
		}
		for _, s := range verified {
			v.Signers = append(v.Signers, s.Key.ID)
		}
	}
	if a.Subject != "" {
		return v, nil // what is attached waits for nothing
	}
	err = f.held(ctx, i, a.Digest, since)
	if hold, ok := errors.AsType[*HoldError](err); ok {
		v.Held = hold
		return v, nil
	}
	return v, err
}
