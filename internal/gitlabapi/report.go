package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// reportRoutes are ours: an artifact with what is attached to it, and the
// reports that it needs before it is announced.
func (a *API) reportRoutes() []route {
	return []route{
		{get, "/projects/:id/registry/artifacts/:reference", a.showArtifact},
		{get, "/projects/:id/registry/report_rules", a.listReportRules},
		{post, "/projects/:id/registry/report_rules", a.addReportRule},
		{del, "/projects/:id/registry/report_rules/:rule_id", a.removeReportRule},
	}
}

type attachedShape struct {
	Digest       tidelock.Digest   `json:"digest"`
	MediaType    string            `json:"media_type"`
	ArtifactType string            `json:"artifact_type"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations"`
	PushedAt     exact             `json:"pushed_at"`
}

func newAttachedShape(a tidelock.Artifact) attachedShape {
	annotations := a.Annotations
	if annotations == nil {
		annotations = map[string]string{}
	}
	return attachedShape{
		Digest: a.Digest, MediaType: a.MediaType, ArtifactType: a.Type, Size: a.TotalSize(), Annotations: annotations, PushedAt: exact(a.PushedAt),
	}
}

type artifactPartShape struct {
	Digest    tidelock.Digest `json:"digest"`
	MediaType string          `json:"media_type"`
	Size      int64           `json:"size"`
}

type artifactShape struct {
	Image string `json:"image"` // its path, as clients write it after the host
	attachedShape
	Subject  *tidelock.Digest    `json:"subject"`
	Commit   *tidelock.CommitID  `json:"commit"`
	Tags     []string            `json:"tags"`
	Parts    []artifactPartShape `json:"parts"`
	Attached []attachedShape     `json:"attached"`
	SignedBy []string            `json:"signed_by"`
	Held     *heldShape          `json:"held"`
}

type heldShape struct {
	ArtifactType string `json:"artifact_type"`
	Signed       bool   `json:"signed"`
	Since        exact  `json:"since"`
	Message      string `json:"message"`
}

func newArtifactShape(project tidelock.Project, image string, v forge.ArtifactView) artifactShape {
	shape := artifactShape{
		Image: tidelock.Image{Name: image}.Path(project), attachedShape: newAttachedShape(v.Artifact),
		Subject: orNull(v.Subject), Commit: orNull(v.Commit), Tags: append([]string{}, v.Tags...),
		Parts: each(v.Parts, func(p tidelock.Part) artifactPartShape {
			return artifactPartShape{Digest: p.Digest, MediaType: p.MediaType, Size: p.Size}
		}),
		Attached: each(v.Attached, newAttachedShape), SignedBy: append([]string{}, v.Signers...),
	}
	if h := v.Held; h != nil {
		shape.Held = &heldShape{ArtifactType: h.Type, Signed: h.Signed, Since: exact(h.Since), Message: h.Error()}
	}
	return shape
}

// showArtifact reads an artifact by tag or digest, of the project's own image
// or of one below it.
func (a *API) showArtifact(w http.ResponseWriter, r *request) error {
	project, err := a.forge.ProjectFor(r.ctx(), r.by, r.arg("id"), forge.ReadImages)
	if err != nil {
		return err
	}
	image := r.text("image")
	if err := r.err(); err != nil {
		return err
	}
	view, err := a.forge.ViewArtifact(r.ctx(), r.by, project, image, r.arg("reference"))
	if err != nil {
		return err
	}
	return ok(w, newArtifactShape(project, image, view))
}

type reportRuleShape struct {
	ID           int64           `json:"id"`
	ArtifactType string          `json:"artifact_type"`
	PublicKey    *string         `json:"public_key"`
	CreatorID    tidelock.UserID `json:"creator_id"`
	CreatedAt    exact           `json:"created_at"`
}

func newReportRuleShape(r tidelock.ReportRule) reportRuleShape {
	return reportRuleShape{ID: r.ID, ArtifactType: r.Type, PublicKey: orNull(r.Key), CreatorID: r.Creator, CreatedAt: exact(r.CreatedAt)}
}

func (a *API) listReportRules(w http.ResponseWriter, r *request) error {
	rules, err := a.forge.ReportRules(r.ctx(), r.by, r.arg("id"))
	if err != nil {
		return err
	}
	return ok(w, each(rules, newReportRuleShape))
}

func (a *API) addReportRule(w http.ResponseWriter, r *request) error {
	project, err := a.forge.ProjectFor(r.ctx(), r.by, r.arg("id"), forge.ManageReportRules)
	if err != nil {
		return err
	}
	r.need("artifact_type")
	rule := tidelock.ReportRule{Type: r.text("artifact_type"), Key: r.text("public_key")}
	if err := r.err(); err != nil {
		return err
	}
	made, err := a.forge.AddReportRule(r.ctx(), r.by, project.FullPath, rule)
	if err != nil {
		return err
	}
	return created(w, newReportRuleShape(made))
}

func (a *API) removeReportRule(w http.ResponseWriter, r *request) error {
	if _, err := a.forge.ProjectFor(r.ctx(), r.by, r.arg("id"), forge.ManageReportRules); err != nil {
		return err
	}
	n, err := id[int64](r, "rule_id")
	if err != nil {
		return err
	}
	if err := a.forge.RemoveReportRule(r.ctx(), r.by, r.arg("id"), n); err != nil {
		return err
	}
	return gone(w)
}
