package gitlabapi

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"mime"
	"net/http"
	"path"
	"strconv"
	"unicode/utf8"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

// maxFile is the size, in bytes, above which a file is not served by the API;
// git serves it.
const maxFile = 32 << 20

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
	writeFileHeaders(w.Header(), shape)
	writeRaw(w, shape.FileName, file.Content)
	return nil
}

// writeRaw answers with a content as it is, and so that no browser runs it.
func writeRaw(w http.ResponseWriter, name string, content []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if utf8.Valid(content) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	h.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": name}))
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("Content-Length", strconv.Itoa(len(content)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(content) // fails only when the client left
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
	file, err := anyFile(a, r, func(most int64) (gitrepo.File, error) { return repo.File(r.ctx(), rev, name, most) })
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

// newFile reads what the routes that write one file have in common, for a
// caller who may write the code.
func (a *API) newFile(r *request, kind gitrepo.ChangeKind) (tidelock.Project, forge.NewCommit, error) {
	project, err := a.project(r, forge.WriteCode)
	if err != nil {
		return project, forge.NewCommit{}, err
	}
	r.need("branch", "commit_message")
	n := r.commitParams()
	change := gitrepo.Change{
		Kind: kind, Path: r.arg("file_path"), LastCommit: tidelock.CommitID(r.text("last_commit_id")),
		Executable: given(&r.params, "execute_filemode", r.flag),
	}
	if kind != gitrepo.DeleteFile {
		r.need("content")
		change.Content = r.content()
	}
	n.Changes = []gitrepo.Change{change}
	return project, n, r.err()
}

// writeFile creates, updates or deletes one file, as one commit.
func (a *API) writeFile(kind gitrepo.ChangeKind, status int) handler {
	return func(w http.ResponseWriter, r *request) error {
		project, n, err := a.newFile(r, kind)
		if err != nil {
			return err
		}
		if _, err := a.forge.Commit(r.ctx(), r.by, project, n); err != nil {
			return plainly(err)
		}
		if kind == gitrepo.DeleteFile {
			return gone(w)
		}
		return writeJSON(w, status, fileWritten{FilePath: r.arg("file_path"), Branch: n.Branch})
	}
}

type fileWritten struct {
	FilePath string `json:"file_path"`
	Branch   string `json:"branch"`
}

type blobShape struct {
	Size     int               `json:"size"`
	Encoding string            `json:"encoding"`
	Content  string            `json:"content"`
	SHA      tidelock.CommitID `json:"sha"`
}

func (a *API) showBlob(w http.ResponseWriter, r *request) error {
	content, err := a.blob(r)
	if err != nil {
		return err
	}
	return ok(w, blobShape{
		Size: len(content), Encoding: "base64", Content: base64.StdEncoding.EncodeToString(content), SHA: tidelock.CommitID(r.arg("sha")),
	})
}

func (a *API) rawBlob(w http.ResponseWriter, r *request) error {
	content, err := a.blob(r)
	if err != nil {
		return err
	}
	writeRaw(w, r.arg("sha"), content)
	return nil
}

func (a *API) blob(r *request) ([]byte, error) {
	_, repo, err := a.code(r)
	if err != nil {
		return nil, err
	}
	content, err := anyFile(a, r, func(most int64) ([]byte, error) {
		return repo.Blob(r.ctx(), tidelock.CommitID(r.arg("sha")), most)
	})
	return content, missing("Blob", err)
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
