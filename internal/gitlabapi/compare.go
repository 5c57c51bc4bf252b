package gitlabapi

import (
	"cmp"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// maxCompared bounds the commits that a comparison lists: the newest ones.
const maxCompared = 1000

type diffShape struct {
	Diff        string `json:"diff"`
	NewPath     string `json:"new_path"`
	OldPath     string `json:"old_path"`
	AMode       string `json:"a_mode"`
	BMode       string `json:"b_mode"`
	NewFile     bool   `json:"new_file"`
	RenamedFile bool   `json:"renamed_file"`
	DeletedFile bool   `json:"deleted_file"`
	Generated   *bool  `json:"generated_file"`
	Collapsed   bool   `json:"collapsed"`
	TooLarge    bool   `json:"too_large"`
}

// shapeDiff makes GitLab's shape of a diff; a unified one names the files.
func shapeDiff(unified bool) func(gitrepo.FileDiff) diffShape {
	return func(d gitrepo.FileDiff) diffShape {
		shape := diffShape{
			Diff: d.Patch, NewPath: d.New, OldPath: d.Old, AMode: d.OldMode, BMode: d.NewMode,
			NewFile: d.Added, RenamedFile: d.Renamed, DeletedFile: d.Deleted, Collapsed: d.Collapsed, TooLarge: d.TooLarge,
		}
		before, after := "a/"+d.Old, "b/"+d.New
		if d.Added {
			before = "/dev/null"
		}
		if d.Deleted {
			after = "/dev/null"
		}
		switch {
		case d.Binary:
			shape.Diff = "Binary files " + before + " and " + after + " differ\n"
		case unified && d.Patch != "":
			shape.Diff = "--- " + before + "\n+++ " + after + "\n" + d.Patch
		}
		return shape
	}
}

// showCommitDiff answers with what a commit changed against its first parent.
func (a *API) showCommitDiff(w http.ResponseWriter, r *request) error {
	_, repo, err := a.code(r)
	if err != nil {
		return err
	}
	unified, page := r.flag("unidiff"), r.page()
	if err := r.err(); err != nil {
		return err
	}
	commit, err := repo.Commit(r.ctx(), r.arg("sha"))
	if err != nil {
		return missing("Commit", err)
	}
	var parent tidelock.CommitID
	if len(commit.Parents) > 0 {
		parent = commit.Parents[0]
	}
	diffs, _, err := repo.Diff(r.ctx(), parent, commit.ID)
	if err != nil {
		return missing("Commit", err)
	}
	return writePage(a, w, r, page, each(cut(page, diffs), shapeDiff(unified)), len(diffs))
}

type compareShape struct {
	Commit  *commitShape  `json:"commit"`
	Commits []commitShape `json:"commits"`
	Diffs   []diffShape   `json:"diffs"`
	Timeout bool          `json:"compare_timeout"` // something was left out
	SameRef bool          `json:"compare_same_ref"`
	WebURL  string        `json:"web_url"`
}

// compare answers with the commits that one revision has and another lacks,
// oldest first, and with the difference: from where both parted, or, straight,
// between the two.
func (a *API) compare(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
	if err != nil {
		return err
	}
	r.need("from", "to")
	from, to, straight, unified := r.text("from"), r.text("to"), r.flag("straight"), r.flag("unidiff")
	if r.has("from_project_id") {
		r.note("from_project_id", "is not supported")
	}
	if err := r.err(); err != nil {
		return err
	}
	old, err := repo.Commit(r.ctx(), from)
	if err != nil {
		return missing("Ref", err)
	}
	head, err := repo.Commit(r.ctx(), to)
	if err != nil {
		return missing("Ref", err)
	}
	commits, err := repo.Commits(r.ctx(), gitrepo.CommitQuery{
		Rev: string(head.ID), Without: old.ID, Page: tidelock.Page{Number: 1, PerPage: maxCompared + 1},
	})
	if err != nil {
		return missing("Ref", err)
	}
	left := len(commits) > maxCompared
	commits = commits[:min(len(commits), maxCompared)]
	slices.Reverse(commits)
	shape := compareShape{
		Commits: each(commits, func(c gitrepo.Commit) commitShape { return a.commitShape(project, c) }),
		Diffs:   []diffShape{}, SameRef: old.ID == head.ID, Timeout: left,
		WebURL: a.webURL(project.FullPath, "-/compare", from+"..."+to),
	}
	if len(commits) > 0 {
		shape.Commit = &shape.Commits[len(commits)-1]
	}
	base := old.ID
	if !straight {
		base, err = repo.MergeBase(r.ctx(), string(old.ID), string(head.ID))
		if tidelock.KindOf(err) == tidelock.NotFound { // nothing in common to compare with
			return ok(w, shape)
		}
		if err != nil {
			return err
		}
	}
	diffs, more, err := repo.Diff(r.ctx(), base, head.ID)
	if err != nil {
		return missing("Ref", err)
	}
	shape.Diffs, shape.Timeout = each(diffs, shapeDiff(unified)), left || more
	return ok(w, shape)
}

func (a *API) showMergeBase(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
	if err != nil {
		return err
	}
	r.need("refs")
	revs := r.list("refs")
	if err := r.err(); err != nil {
		return err
	}
	if len(revs) < 2 || len(revs) > 20 {
		return errBadRequest("Provide at least 2 refs, and at most 20")
	}
	for _, rev := range revs {
		if _, err := repo.Commit(r.ctx(), rev); tidelock.KindOf(err) == tidelock.NotFound {
			return errBadRequest("Could not find ref: " + rev)
		} else if err != nil {
			return err
		}
	}
	base, err := repo.MergeBase(r.ctx(), revs...)
	if err != nil {
		return missing("Merge Base", err)
	}
	commit, err := repo.Commit(r.ctx(), string(base))
	if err != nil {
		return err
	}
	return ok(w, a.commitShape(project, commit))
}

type contributorShape struct {
	Name      string `json:"name"`
	Email     string `json:"email"`
	Commits   int    `json:"commits"`
	Additions int    `json:"additions"` // always 0, as GitLab's
	Deletions int    `json:"deletions"`
}

func (a *API) listContributors(w http.ResponseWriter, r *request) error {
	project, repo, err := a.code(r)
	if err != nil {
		return err
	}
	rev := r.text("ref")
	by, ascending := r.word("order_by", "commits", "name", "email"), r.word("sort", "asc", "desc") == "asc"
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	people, err := repo.Contributors(r.ctx(), cmp.Or(rev, string(tidelock.BranchRef(project.DefaultBranch))))
	if rev == "" && tidelock.KindOf(err) == tidelock.NotFound { // nothing was pushed yet
		people, err = nil, nil
	}
	if err != nil {
		return missing("Ref", err)
	}
	slices.SortStableFunc(people, func(a, b gitrepo.Contributor) int {
		order := cmp.Compare(a.Commits, b.Commits)
		switch by {
		case "name":
			order = cmp.Compare(a.Name, b.Name)
		case "email":
			order = cmp.Compare(a.Email, b.Email)
		}
		if !ascending {
			return -order
		}
		return order
	})
	shapes := each(cut(page, people), func(c gitrepo.Contributor) contributorShape {
		return contributorShape{Name: c.Name, Email: c.Email, Commits: c.Commits}
	})
	return writePage(a, w, r, page, shapes, len(people))
}

// archiveStall bounds how long a client may take no byte of an archive.
const archiveStall = time.Minute

// archive streams the files of a commit in a format, or in the one that a
// parameter names.
func (a *API) archive(format gitrepo.ArchiveFormat) handler {
	return func(w http.ResponseWriter, r *request) error {
		project, repo, err := a.code(r)
		if err != nil {
			return err
		}
		format := format
		if format == "" {
			switch word := cmp.Or(r.text("format"), string(gitrepo.TarGz)); word {
			case "tar.gz", "tar", "zip":
				format = gitrepo.ArchiveFormat(word)
			case "bz2", "tar.bz2", "tb2", "tbz", "tbz2":
				return &statusError{status: http.StatusNotAcceptable, body: errorBody{Message: "406 Not Acceptable - archives are tar.gz, tar or zip"}}
			default:
				r.note("format", "does not have a valid value")
			}
		}
		if r.has("exclude_paths") {
			r.note("exclude_paths", "is not supported")
		}
		rev, within := cmp.Or(r.text("sha"), project.DefaultBranch), strings.Trim(r.text("path"), "/")
		if err := r.err(); err != nil {
			return err
		}
		commit, err := repo.Commit(r.ctx(), rev)
		if err != nil {
			return missing("File", err)
		}
		if within != "" {
			there, err := repo.Exists(r.ctx(), commit.ID, within)
			if err != nil {
				return err
			}
			if !there {
				return errMissing("File")
			}
		}
		name := archiveName(project, rev, commit.ID, within)
		h := w.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name + "." + string(format)}))
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusOK)
			return nil
		}
		out := &unhurried{out: w, control: http.NewResponseController(w)}
		err = repo.Archive(r.ctx(), gitrepo.ArchiveRequest{Commit: commit.ID, Path: within, Format: format, Prefix: name}, out)
		if err != nil && !out.used {
			h.Del("Content-Disposition")
		}
		return err
	}
}

// archiveName is GitLab's: "site-main-<commit>", and the path if it is a part.
func archiveName(p tidelock.Project, rev string, commit tidelock.CommitID, within string) string {
	name := p.Path + "-" + rev + "-" + string(commit)
	if within != "" {
		name += "-" + within
	}
	return strings.ReplaceAll(name, "/", "-")
}

// An unhurried writer gives a client that reads all the time it needs, but not
// one that stalls.
type unhurried struct {
	out     io.Writer
	control *http.ResponseController
	used    bool
}

func (u *unhurried) Write(p []byte) (int, error) {
	u.used = true
	if err := u.control.SetWriteDeadline(time.Now().Add(archiveStall)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return u.out.Write(p)
}
