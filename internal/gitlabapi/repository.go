package gitlabapi

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

// maxFile is the size, in bytes, above which a file is not served by the API;
// git serves it.
const maxFile = 32 << 20

// code is the project that a route names and its repository, for a caller who
// may read the code.
func (a *API) code(r *request) (tidelock.Project, *gitrepo.Repo, error) {
	project, err := a.project(r, forge.ReadCode)
	if err != nil {
		return tidelock.Project{}, nil, err
	}
	return project, a.repos.Repo(project.ID), nil
}

type commitShape struct {
	ID               tidelock.CommitID   `json:"id"`
	ShortID          tidelock.CommitID   `json:"short_id"`
	CreatedAt        zoned               `json:"created_at"`
	ParentIDs        []tidelock.CommitID `json:"parent_ids"`
	Title            string              `json:"title"`
	Message          string              `json:"message"`
	AuthorName       string              `json:"author_name"`
	AuthorEmail      string              `json:"author_email"`
	AuthoredDate     zoned               `json:"authored_date"`
	CommitterName    string              `json:"committer_name"`
	CommitterEmail   string              `json:"committer_email"`
	CommittedDate    zoned               `json:"committed_date"`
	Trailers         struct{}            `json:"trailers"`
	ExtendedTrailers struct{}            `json:"extended_trailers"`
	WebURL           string              `json:"web_url"`
}

// A commitAlone has what GitLab adds when one commit is asked for.
type commitAlone struct {
	commitShape
	Stats        *struct{}             `json:"stats"`
	Status       *tidelock.StatusState `json:"status"`
	ProjectID    tidelock.ProjectID    `json:"project_id"`
	LastPipeline *pipelineShape        `json:"last_pipeline"`
}

func (a *API) commitShape(p tidelock.Project, c gitrepo.Commit) commitShape {
	return commitShape{
		ID: c.ID, ShortID: c.ID[:min(8, len(c.ID))], CreatedAt: zoned(c.Committer.When), ParentIDs: list(c.Parents),
		Title: c.Title, Message: c.Message,
		AuthorName: c.Author.Name, AuthorEmail: c.Author.Email, AuthoredDate: zoned(c.Author.When),
		CommitterName: c.Committer.Name, CommitterEmail: c.Committer.Email, CommittedDate: zoned(c.Committer.When),
		WebURL: a.webURL(p.FullPath, "-/commit", string(c.ID)),
	}
}

func (a *API) listCommits(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
	if err != nil {
		return err
	}
	query := gitrepo.CommitQuery{
		Rev: r.text("ref_name"), Path: strings.Trim(r.text("path"), "/"),
		Since: r.when("since"), Until: r.when("until"), Page: r.page(),
	}
	if err := r.err(); err != nil {
		return err
	}
	byDefault := query.Rev == ""
	if byDefault {
		query.Rev = string(tidelock.BranchRef(project.DefaultBranch))
	}
	commits, err := repo.Commits(r.ctx(), query)
	if byDefault && tidelock.KindOf(err) == tidelock.NotFound { // nothing was pushed yet
		commits, err = nil, nil
	}
	if err != nil {
		return missing("Commit", err)
	}
	more := false
	if page := query.Page; len(commits) == page.PerPage {
		query.Page = tidelock.Page{Number: page.Number*page.PerPage + 1, PerPage: 1}
		next, err := repo.Commits(r.ctx(), query)
		if err != nil {
			return err
		}
		more, query.Page = len(next) > 0, page
	}
	shapes := each(commits, func(c gitrepo.Commit) commitShape { return a.commitShape(project, c) })
	return writeUncounted(a, w, r, query.Page, shapes, more)
}

func (a *API) showCommit(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
	if err != nil {
		return err
	}
	commit, err := repo.Commit(r.ctx(), r.arg("sha"))
	if err != nil {
		return missing("Commit", err)
	}
	shape := commitAlone{commitShape: a.commitShape(project, commit), ProjectID: project.ID}
	pipeline, found, err := a.forge.PipelineOf(r.ctx(), r.by, project, commit.ID)
	if err != nil {
		return err
	}
	if found {
		shape.Status, shape.LastPipeline = &pipeline.State, new(a.pipelineShape(project, pipeline))
	}
	return ok(w, shape)
}

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

func (a *API) branchShape(r *request, p tidelock.Project, repo *gitrepo.Repo, b forge.Branch) (branchShape, error) {
	commit, err := repo.Commit(r.ctx(), string(b.Commit))
	if err != nil {
		return branchShape{}, err
	}
	return branchShape{
		Name: b.Name, Protected: b.Protected, Default: b.Default,
		DevelopersCanPush: b.DevelopersCanPush, DevelopersCanMerge: b.DevelopersCanPush, CanPush: b.CanPush,
		WebURL: a.webURL(p.FullPath, "-/tree", b.Name), Commit: a.commitShape(p, commit),
	}, nil
}

func (a *API) listBranches(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
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
	branches := []forge.Branch{}
	for _, b := range all {
		if wanted(b.Name) {
			branches = append(branches, b)
		}
	}
	shapes := []branchShape{}
	for _, b := range cut(page, branches) {
		shape, err := a.branchShape(r, project, repo, b)
		if err != nil {
			return err
		}
		shapes = append(shapes, shape)
	}
	return writePage(a, w, r, page, shapes, len(branches))
}

func (a *API) showBranch(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
	if err != nil {
		return err
	}
	branch, err := a.forge.Branch(r.ctx(), r.by, project, r.arg("branch"))
	if err != nil {
		return err
	}
	shape, err := a.branchShape(r, project, repo, branch)
	if err != nil {
		return err
	}
	return ok(w, shape)
}

// nameFilter is GitLab's search in names: "^a" begins, "a$" ends, and other
// texts are contained, without regard to case.
func nameFilter(search string) func(string) bool {
	search = strings.ToLower(search)
	text, begins := strings.CutPrefix(search, "^")
	text, ends := strings.CutSuffix(text, "$")
	return func(name string) bool {
		name = strings.ToLower(name)
		switch {
		case begins && ends:
			return name == text
		case begins:
			return strings.HasPrefix(name, text)
		case ends:
			return strings.HasSuffix(name, text)
		}
		return strings.Contains(name, text)
	}
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

func (a *API) tagShape(r *request, p tidelock.Project, repo *gitrepo.Repo, head tidelock.Head) (tagShape, error) {
	name, _ := head.Ref.Tag()
	commit, err := repo.Commit(r.ctx(), string(head.Commit))
	if err != nil {
		return tagShape{}, err
	}
	shape := tagShape{Name: name, Target: head.Object, Commit: a.commitShape(p, commit)}
	if head.Object != head.Commit {
		tag, err := repo.Tag(r.ctx(), head.Object)
		if err != nil {
			return tagShape{}, err
		}
		shape.Message, shape.CreatedAt = &tag.Message, zoned(tag.When)
	}
	return shape, nil
}

// tags are a project's tags that name a commit.
func (a *API) tags(r *request, p tidelock.Project) ([]tidelock.Head, error) {
	heads, err := a.forge.Heads(r.ctx(), r.by, p)
	if err != nil {
		return nil, err
	}
	tags := []tidelock.Head{}
	for _, h := range heads {
		if _, isTag := h.Ref.Tag(); isTag && h.Commit != "" {
			tags = append(tags, h)
		}
	}
	return tags, nil
}

func (a *API) listTags(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
	if err != nil {
		return err
	}
	wanted := nameFilter(r.text("search"))
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	all, err := a.tags(r, project)
	if err != nil {
		return err
	}
	tags := []tidelock.Head{}
	for _, h := range all {
		if name, _ := h.Ref.Tag(); wanted(name) {
			tags = append(tags, h)
		}
	}
	shapes := []tagShape{}
	for _, h := range cut(page, tags) {
		shape, err := a.tagShape(r, project, repo, h)
		if err != nil {
			return err
		}
		shapes = append(shapes, shape)
	}
	return writePage(a, w, r, page, shapes, len(tags))
}

func (a *API) showTag(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
	if err != nil {
		return err
	}
	head, err := a.forge.Resolve(r.ctx(), project.ID, tidelock.RefSpec{Tag: r.arg("tag_name")})
	if err == nil && head.Commit == "" {
		return errMissing("Tag")
	}
	if err != nil {
		return missing("Tag", err)
	}
	shape, err := a.tagShape(r, project, repo, head)
	if err != nil {
		return err
	}
	return ok(w, shape)
}

type treeShape struct {
	ID   tidelock.CommitID `json:"id"`
	Name string            `json:"name"`
	Type string            `json:"type"`
	Path string            `json:"path"`
	Mode string            `json:"mode"`
}

func (a *API) listTree(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
	if err != nil {
		return err
	}
	rev, dir, recursive := r.text("ref"), strings.Trim(r.text("path"), "/"), r.flag("recursive")
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	if rev == "" {
		rev = string(tidelock.BranchRef(project.DefaultBranch))
	}
	entries, err := repo.Tree(r.ctx(), rev, dir, recursive)
	if err != nil {
		return missing("Tree", err)
	}
	shapes := each(cut(page, entries), func(e gitrepo.TreeEntry) treeShape {
		return treeShape{ID: e.ID, Name: e.Name, Type: e.Type, Path: e.Path, Mode: e.Mode}
	})
	return writePage(a, w, r, page, shapes, len(entries))
}

type fileShape struct {
	FileName        string            `json:"file_name"`
	FilePath        string            `json:"file_path"`
	Size            int64             `json:"size"`
	Encoding        string            `json:"encoding"`
	ContentSHA256   string            `json:"content_sha256"`
	Ref             string            `json:"ref"`
	BlobID          tidelock.CommitID `json:"blob_id"`
	CommitID        tidelock.CommitID `json:"commit_id"`
	LastCommitID    tidelock.CommitID `json:"last_commit_id"`
	ExecuteFilemode bool              `json:"execute_filemode"`
	Content         string            `json:"content"`
}

// showFile answers with a file in JSON, and with what is known of it in
// headers, which is all that HEAD gets.
func (a *API) showFile(w http.ResponseWriter, r *request) error {
	if _, err := a.project(r, forge.ReadCode); err != nil {
		return err
	}
	r.need("ref")
	rev := r.text("ref")
	if err := r.err(); err != nil {
		return err
	}
	file, shape, err := a.file(r, rev)
	if err != nil {
		return err
	}
	writeFileHeaders(w.Header(), shape)
	shape.Content = base64.StdEncoding.EncodeToString(file.Content)
	return ok(w, shape)
}

// rawFile answers with the content alone, as something no browser runs.
func (a *API) rawFile(w http.ResponseWriter, r *request) error {
	rev := r.text("ref")
	if err := r.err(); err != nil {
		return err
	}
	file, shape, err := a.file(r, rev)
	if err != nil {
		return err
	}
	h := w.Header()
	writeFileHeaders(h, shape)
	h.Set("Content-Type", "application/octet-stream")
	if utf8.Valid(file.Content) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	h.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": shape.FileName}))
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("Content-Length", strconv.Itoa(len(file.Content)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(file.Content) // fails only when the client left
	return nil
}

func (a *API) file(r *request, rev string) (gitrepo.File, fileShape, error) {
	project, repo, err := a.code(r)
	if err != nil {
		return gitrepo.File{}, fileShape{}, err
	}
	if rev == "" {
		rev = "HEAD"
	}
	name := r.arg("file_path")
	file, err := repo.File(r.ctx(), rev, name, maxFile)
	if tidelock.KindOf(err) == tidelock.NotFound {
		if _, noCommit := repo.Commit(r.ctx(), rev); noCommit != nil {
			return gitrepo.File{}, fileShape{}, missing("Commit", noCommit)
		}
		return gitrepo.File{}, fileShape{}, errMissing("File")
	}
	if err != nil {
		return gitrepo.File{}, fileShape{}, err
	}
	if rev == "HEAD" {
		rev = project.DefaultBranch
	}
	sum := sha256.Sum256(file.Content)
	return file, fileShape{
		FileName: path.Base(name), FilePath: name, Size: file.Size, Encoding: "base64",
		ContentSHA256: hex.EncodeToString(sum[:]), Ref: rev, BlobID: file.Blob,
		CommitID: file.Commit, LastCommitID: file.LastCommit, ExecuteFilemode: file.Mode == "100755",
	}, nil
}

func writeFileHeaders(h http.Header, f fileShape) {
	h.Set("X-Gitlab-Blob-Id", string(f.BlobID))
	h.Set("X-Gitlab-Commit-Id", string(f.CommitID))
	h.Set("X-Gitlab-Content-Sha256", f.ContentSHA256)
	h.Set("X-Gitlab-Encoding", f.Encoding)
	h.Set("X-Gitlab-Execute-Filemode", strconv.FormatBool(f.ExecuteFilemode))
	h.Set("X-Gitlab-File-Name", f.FileName)
	h.Set("X-Gitlab-File-Path", f.FilePath)
	h.Set("X-Gitlab-Last-Commit-Id", string(f.LastCommitID))
	h.Set("X-Gitlab-Ref", f.Ref)
	h.Set("X-Gitlab-Size", strconv.FormatInt(f.Size, 10))
}
