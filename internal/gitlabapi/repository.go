package gitlabapi

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

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

type statsShape struct {
	Additions int `json:"additions"`
	Deletions int `json:"deletions"`
	Total     int `json:"total"`
}

// shapeStats is null for a commit that took too long to count.
func shapeStats(counted map[tidelock.CommitID]gitrepo.Stats, commit tidelock.CommitID) *statsShape {
	s, ok := counted[commit]
	if !ok {
		return nil
	}
	return &statsShape{Additions: s.Additions, Deletions: s.Deletions, Total: s.Additions + s.Deletions}
}

// A commitListed has the stats that GitLab adds to a list when asked for them.
type commitListed struct {
	commitShape
	Stats *statsShape `json:"stats,omitempty"`
}

// A commitAlone has what GitLab adds when one commit is asked for.
type commitAlone struct {
	commitShape
	Stats        *statsShape           `json:"stats"`
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
		Rev: r.text("ref_name"), All: r.flag("all"), Path: strings.Trim(r.text("path"), "/"), Author: r.text("author"),
		FirstParent: r.flag("first_parent"), Topological: r.word("order", "default", "topo") == "topo",
		Since: r.when("since"), Until: r.when("until"), Page: r.page(),
	}
	withStats := r.flag("with_stats")
	if err := r.err(); err != nil {
		return err
	}
	byDefault := query.Rev == "" && !query.All
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
	stats := map[tidelock.CommitID]gitrepo.Stats{}
	if withStats {
		stats, err = repo.Stats(r.ctx(), each(commits, func(c gitrepo.Commit) tidelock.CommitID { return c.ID })...)
		if err != nil {
			return err
		}
	}
	shapes := each(commits, func(c gitrepo.Commit) commitListed {
		listed := commitListed{commitShape: a.commitShape(project, c)}
		if withStats {
			listed.Stats = shapeStats(stats, c.ID)
		}
		return listed
	})
	return writeUncounted(a, w, r, query.Page, shapes, more)
}

func (a *API) showCommit(w http.ResponseWriter, r *request) error {
	project, _, err := a.code(r)
	if err != nil {
		return err
	}
	withStats := r.flagOr("stats", true)
	if err := r.err(); err != nil {
		return err
	}
	shape, err := a.commitAlone(r, project, r.arg("sha"), withStats)
	if err != nil {
		return missing("Commit", err)
	}
	return ok(w, shape)
}

func (a *API) commitAlone(r *request, p tidelock.Project, rev string, withStats bool) (commitAlone, error) {
	repo := a.repos.Repo(p.ID)
	commit, err := repo.Commit(r.ctx(), rev)
	if err != nil {
		return commitAlone{}, err
	}
	shape := commitAlone{commitShape: a.commitShape(p, commit), ProjectID: p.ID}
	if withStats {
		stats, err := repo.Stats(r.ctx(), commit.ID)
		if err != nil {
			return commitAlone{}, err
		}
		shape.Stats = shapeStats(stats, commit.ID)
	}
	pipeline, found, err := a.forge.PipelineOf(r.ctx(), r.by, p, commit.ID)
	if err != nil {
		return commitAlone{}, err
	}
	if found {
		shape.Status, shape.LastPipeline = &pipeline.State, new(a.pipelineShape(p, pipeline))
	}
	return shape, nil
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
	keyset, after := r.word("pagination", "legacy", "keyset", "none") == "keyset", r.text("page_token")
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	if rev == "" {
		rev = string(tidelock.BranchRef(project.DefaultBranch))
	}
	if recursive { // all of it is read for every page
		if err := a.hold(r); err != nil {
			return err
		}
	}
	entries, err := repo.Tree(r.ctx(), rev, dir, recursive)
	if err != nil {
		return missing("Tree", err)
	}
	shape := func(e gitrepo.TreeEntry) treeShape {
		return treeShape{ID: e.ID, Name: e.Name, Type: e.Type, Path: e.Path, Mode: e.Mode}
	}
	if !keyset {
		return writePage(a, w, r, page, each(cut(page, entries), shape), len(entries))
	}
	if after != "" {
		i := slices.IndexFunc(entries, func(e gitrepo.TreeEntry) bool { return treeToken(e) == after })
		if i < 0 {
			return errBadRequest("page_token names no entry of this tree")
		}
		entries = entries[i+1:]
	}
	var next url.Values
	if len(entries) > page.PerPage {
		entries = entries[:page.PerPage]
		next = url.Values{"page_token": {treeToken(entries[len(entries)-1])}}
	}
	return writeKeyset(a, w, r, page.PerPage, each(entries, shape), next)
}

// treeToken names an entry to go on after: its path, in letters that every URL
// takes.
func treeToken(e gitrepo.TreeEntry) string {
	return base64.RawURLEncoding.EncodeToString([]byte(e.Path))
}
