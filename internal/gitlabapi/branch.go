package gitlabapi

import (
	"net/http"
	"slices"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

type branchShape struct {
	Name               string      `json:"name"`
	Merged             bool        `json:"merged"`
	Protected          bool        `json:"protected"`
	Default            bool        `json:"default"`
	DevelopersCanPush  bool        `json:"developers_can_push"`
	DevelopersCanMerge bool        `json:"developers_can_merge"`
	CanPush            bool        `json:"can_push"`
	WebURL             string      `json:"web_url"`
	Commit             commitShape `json:"commit"`
}

// branchShapes reads what is told of branches at once, however many they are.
func (a *API) branchShapes(r *request, p tidelock.Project, branches []forge.Branch) ([]branchShape, error) {
	if len(branches) == 0 {
		return nil, nil
	}
	ids := each(branches, func(b forge.Branch) tidelock.CommitID { return b.Commit })
	commits, err := a.repos.Repo(p.ID).CommitsByID(r.ctx(), ids...)
	if err != nil {
		return nil, err
	}
	merged, err := a.forge.MergedBranches(r.ctx(), p)
	if err != nil {
		return nil, err
	}
	return each(branches, func(b forge.Branch) branchShape {
		return branchShape{
			Name: b.Name, Merged: !b.Default && slices.Contains(merged, b.Ref), Protected: b.Protected, Default: b.Default,
			DevelopersCanPush: b.DevelopersCanPush, DevelopersCanMerge: b.DevelopersCanPush, CanPush: b.CanPush,
			WebURL: a.webURL(p.FullPath, "-/tree", b.Name), Commit: a.commitShape(p, commits[b.Commit]),
		}
	}), nil
}

func (a *API) listBranches(w http.ResponseWriter, r *request) error {
	project, _, err := a.code(r)
	if err != nil {
		return err
	}
	wanted := nameFilter(r.text("search"))
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	all, err := a.forge.Branches(r.ctx(), r.by, project)
	if err != nil {
		return err
	}
	branches := slices.DeleteFunc(all, func(b forge.Branch) bool { return !wanted(b.Name) })
	shapes, err := a.branchShapes(r, project, cut(page, branches))
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, shapes, len(branches))
}

func (a *API) showBranch(w http.ResponseWriter, r *request) error {
	project, _, err := a.code(r)
	if err != nil {
		return err
	}
	return a.writeBranch(w, r, http.StatusOK, project, r.arg("branch"))
}

func (a *API) writeBranch(w http.ResponseWriter, r *request, status int, p tidelock.Project, name string) error {
	branch, err := a.forge.Branch(r.ctx(), r.by, p, name)
	if err != nil {
		return err
	}
	shapes, err := a.branchShapes(r, p, []forge.Branch{branch})
	if err != nil {
		return err
	}
	return writeJSON(w, status, shapes[0])
}

func (a *API) createBranch(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.WriteCode)
	if err != nil {
		return err
	}
	r.need("branch", "ref")
	name, ref := r.text("branch"), r.text("ref")
	if err := r.err(); err != nil {
		return err
	}
	if err := a.forge.CreateBranch(r.ctx(), r.by, project, name, ref); err != nil {
		return plainly(err)
	}
	return a.writeBranch(w, r, http.StatusCreated, project, name)
}

func (a *API) deleteBranch(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.WriteCode)
	if err != nil {
		return err
	}
	if err := a.forge.DeleteBranch(r.ctx(), r.by, project, r.arg("branch")); err != nil {
		return notAllowedHere(err)
	}
	return gone(w)
}

func (a *API) deleteMergedBranches(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.WriteCode)
	if err != nil {
		return err
	}
	if err := a.forge.DeleteMergedBranches(r.ctx(), r.by, project); err != nil {
		return plainly(err)
	}
	return accepted(w)
}

// notAllowedHere answers that a ref may not go, to somebody who may write the
// code, with GitLab's 405.
func notAllowedHere(err error) error {
	if tidelock.KindOf(err) == tidelock.Denied {
		return &statusError{status: http.StatusMethodNotAllowed, body: errorBody{Message: err.Error()}}
	}
	return plainly(err)
}

type tagShape struct {
	Name      string            `json:"name"`
	Message   *string           `json:"message"` // null for a lightweight tag
	Target    tidelock.CommitID `json:"target"`
	Commit    commitShape       `json:"commit"`
	Release   *struct{}         `json:"release"`
	Protected bool              `json:"protected"`
	CreatedAt zoned             `json:"created_at"`
}

// tagShapes reads what is told of tags at once, however many they are.
func (a *API) tagShapes(r *request, p tidelock.Project, heads []tidelock.Head) ([]tagShape, error) {
	if len(heads) == 0 {
		return nil, nil
	}
	repo := a.repos.Repo(p.ID)
	var commits, annotated []tidelock.CommitID
	for _, h := range heads {
		commits = append(commits, h.Commit)
		if h.Object != h.Commit {
			annotated = append(annotated, h.Object)
		}
	}
	found, err := repo.CommitsByID(r.ctx(), commits...)
	if err != nil {
		return nil, err
	}
	tags, err := repo.Tags(r.ctx(), annotated...)
	if err != nil {
		return nil, err
	}
	protected, err := a.forge.TagIsProtected(r.ctx(), r.by, p)
	if err != nil {
		return nil, err
	}
	return each(heads, func(h tidelock.Head) tagShape {
		name, _ := h.Ref.Tag()
		shape := tagShape{Name: name, Target: h.Object, Commit: a.commitShape(p, found[h.Commit]), Protected: protected(name)}
		if tag, ok := tags[h.Object]; ok {
			shape.Message, shape.CreatedAt = &tag.Message, zoned(tag.When)
		}
		return shape
	}), nil
}

func (a *API) listTags(w http.ResponseWriter, r *request) error {
	project, _, err := a.code(r)
	if err != nil {
		return err
	}
	wanted := nameFilter(r.text("search"))
	descending := r.word("sort", "asc", "desc") == "desc"
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	heads, err := a.forge.Heads(r.ctx(), r.by, project)
	if err != nil {
		return err
	}
	tags := slices.DeleteFunc(heads, func(h tidelock.Head) bool {
		name, isTag := h.Ref.Tag()
		return !isTag || h.Commit == "" || !wanted(name)
	})
	if descending {
		slices.Reverse(tags)
	}
	shapes, err := a.tagShapes(r, project, cut(page, tags))
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, shapes, len(tags))
}

func (a *API) showTag(w http.ResponseWriter, r *request) error {
	project, _, err := a.code(r)
	if err != nil {
		return err
	}
	return a.writeTag(w, r, http.StatusOK, project, r.arg("tag_name"))
}

func (a *API) writeTag(w http.ResponseWriter, r *request, status int, p tidelock.Project, name string) error {
	head, err := a.forge.Resolve(r.ctx(), p.ID, tidelock.RefSpec{Tag: name})
	if err == nil && head.Commit == "" {
		return errMissing("Tag")
	}
	if err != nil {
		return missing("Tag", err)
	}
	shapes, err := a.tagShapes(r, p, []tidelock.Head{head})
	if err != nil {
		return err
	}
	return writeJSON(w, status, shapes[0])
}

func (a *API) createTag(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.WriteCode)
	if err != nil {
		return err
	}
	r.need("tag_name", "ref")
	name, ref, message := r.text("tag_name"), r.text("ref"), r.text("message")
	if err := r.err(); err != nil {
		return err
	}
	if err := a.forge.CreateTag(r.ctx(), r.by, project, name, ref, message); err != nil {
		return plainly(err)
	}
	return a.writeTag(w, r, http.StatusCreated, project, name)
}

func (a *API) deleteTag(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.WriteCode)
	if err != nil {
		return err
	}
	if err := a.forge.DeleteTag(r.ctx(), r.by, project, r.arg("tag_name")); err != nil {
		return plainly(err)
	}
	return gone(w)
}

type refShape struct {
	Type string `json:"type"`
	Name string `json:"name"`
}

// listCommitRefs answers from which branches and tags a commit can be reached.
func (a *API) listCommitRefs(w http.ResponseWriter, r *request) error {
	_, repo, err := a.code(r)
	if err != nil {
		return err
	}
	kind := r.word("type", "all", "branch", "tag")
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	commit, err := repo.Commit(r.ctx(), r.arg("sha"))
	if err != nil {
		return missing("Commit", err)
	}
	names, err := repo.RefsContaining(r.ctx(), commit.ID)
	if err != nil {
		return missing("Commit", err)
	}
	refs := []refShape{}
	for _, ref := range names {
		if name, ok := ref.Branch(); ok && kind != "tag" {
			refs = append(refs, refShape{"branch", name})
		}
		if name, ok := ref.Tag(); ok && kind != "branch" {
			refs = append(refs, refShape{"tag", name})
		}
	}
	return writePage(a, w, r, page, cut(page, refs), len(refs))
}
