package gitlabapi

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"unicode/utf8"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

// repositoryRoutes are those that change repositories, or compare and pack
// what is in them.
func (a *API) repositoryRoutes() []route {
	const repository = "/projects/:id/repository"
	return []route{
		{post, repository + "/commits", a.createCommit},
		{get, repository + "/commits/:sha/diff", a.showCommitDiff},
		{get, repository + "/commits/:sha/refs", a.listCommitRefs},
		{post, repository + "/files/:file_path", a.writeFile(gitrepo.CreateFile, http.StatusCreated)},
		{put, repository + "/files/:file_path", a.writeFile(gitrepo.UpdateFile, http.StatusOK)},
		{del, repository + "/files/:file_path", a.writeFile(gitrepo.DeleteFile, http.StatusNoContent)},
		{get, repository + "/blobs/:sha", a.showBlob},
		{get, repository + "/blobs/:sha/raw", a.rawBlob},
		{post, repository + "/branches", a.createBranch},
		{del, repository + "/branches/:branch", a.deleteBranch},
		{del, repository + "/merged_branches", a.deleteMergedBranches},
		{post, repository + "/tags", a.createTag},
		{del, repository + "/tags/:tag_name", a.deleteTag},
		{get, repository + "/compare", a.compare},
		{get, repository + "/merge_base", a.showMergeBase},
		{get, repository + "/contributors", a.listContributors},
		{get, repository + "/archive", a.archive("")},
		{get, repository + "/archive.tar.gz", a.archive(gitrepo.TarGz)},
		{get, repository + "/archive.tar", a.archive(gitrepo.Tar)},
		{get, repository + "/archive.zip", a.archive(gitrepo.Zip)},

		{patch, "/projects/:id/protected_branches/:name", a.editProtectedBranch},
		{get, "/projects/:id/protected_tags", a.listProtectedTags},
		{post, "/projects/:id/protected_tags", a.protectTag},
		{get, "/projects/:id/protected_tags/:name", a.showProtectedTag},
		{del, "/projects/:id/protected_tags/:name", a.unprotectTag},
	}
}

// createCommit makes one commit of a list of actions.
func (a *API) createCommit(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.WriteCode)
	if err != nil {
		return err
	}
	r.need("branch", "commit_message")
	n := r.commitParams()
	n.Changes = r.actions()
	withStats := r.flagOr("stats", true)
	if err := r.err(); err != nil {
		return err
	}
	commit, err := a.forge.Commit(r.ctx(), r.by, project, n)
	if err != nil {
		return plainly(err)
	}
	shape, err := a.commitAlone(r, project, string(commit), withStats)
	if err != nil {
		return err
	}
	return created(w, shape)
}

// commitParams reads what is said of a commit beside its changes.
func (p *params) commitParams() forge.NewCommit {
	if p.has("start_project") {
		p.note("start_project", "is not supported: commit to the project of the branch")
	}
	if p.has("start_branch") && p.has("start_sha") {
		p.note("start_branch, start_sha", "are mutually exclusive")
	}
	return forge.NewCommit{
		Branch: p.text("branch"), StartBranch: p.text("start_branch"), StartCommit: p.text("start_sha"), Force: p.flag("force"),
		Message: p.text("commit_message"), AuthorName: p.text("author_name"), AuthorEmail: p.text("author_email"),
	}
}

// actions reads the list of a commit's changes. None is an empty commit, which
// has to be meant.
func (p *params) actions() []gitrepo.Change {
	list, isList := p.values["actions"].([]any)
	if !isList || len(list) == 0 {
		switch {
		case p.has("actions") && !isList:
			p.note("actions", "is invalid")
		case !p.flag("allow_empty"):
			p.need("actions")
			if isList {
				p.note("actions", "is empty")
			}
		}
		return nil
	}
	changes := make([]gitrepo.Change, len(list))
	for i, element := range list {
		values, ok := element.(map[string]any)
		if !ok {
			p.note(fmt.Sprintf("actions[%d]", i), "is invalid")
			continue
		}
		for name, value := range values {
			if value == nil {
				delete(values, name)
			}
		}
		action := &params{values: values}
		changes[i] = action.change()
		for _, wrong := range action.wrong {
			p.note(fmt.Sprintf("actions[%d]", i), wrong)
		}
		if len(p.wrong) > 20 {
			break // enough to see what is wrong
		}
	}
	return changes
}

// change reads one action.
func (p *params) change() gitrepo.Change {
	p.need("action", "file_path")
	c := gitrepo.Change{
		Kind: gitrepo.ChangeKind(p.text("action")), Path: p.text("file_path"),
		LastCommit: tidelock.CommitID(p.text("last_commit_id")), Executable: given(p, "execute_filemode", p.flag),
	}
	switch c.Kind {
	case gitrepo.CreateFile, gitrepo.UpdateFile:
		p.need("content")
		c.Content = p.content()
	case gitrepo.MoveFile:
		p.need("previous_path")
		c.From = p.text("previous_path")
		if p.has("content") {
			c.Content = p.content()
		}
	case gitrepo.ChmodFile:
		p.need("execute_filemode")
	case gitrepo.DeleteFile:
	default:
		p.note("action", "does not have a valid value")
	}
	return c
}

// flagOr is flag with another default.
func (p *params) flagOr(name string, otherwise bool) bool {
	if !p.has(name) {
		return otherwise
	}
	return p.flag(name)
}

// content reads what a file is to hold, which in a text may be any character.
func (p *params) content() []byte {
	text, ok := plain(p.values["content"])
	if !ok || !utf8.ValidString(text) {
		p.note("content", "is invalid")
		return nil
	}
	if p.word("encoding", "text", "base64") == "text" {
		return []byte(text)
	}
	content, err := base64.StdEncoding.DecodeString(text) // ends of lines are skipped
	if err != nil {
		p.note("content", "is not base64")
	}
	return content
}

// plainly tells a client's mistake in a commit or with a ref without the
// heading that other mistakes have, as GitLab does; clients match on the text.
func plainly(err error) error {
	e, ok := errors.AsType[*tidelock.Error](err)
	if ok && e.Field == "" && (e.Kind == tidelock.Invalid || e.Kind == tidelock.Conflict) {
		return &statusError{status: http.StatusBadRequest, body: errorBody{Message: e.Message}}
	}
	return err
}
