package gitrepo

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"tidelock.dev"
)

// An ArchiveFormat is how an Archive is packed.
type ArchiveFormat string

const (
	TarGz ArchiveFormat = "tar.gz"
	Tar   ArchiveFormat = "tar"
	Zip   ArchiveFormat = "zip"
)

// archiveTimeout bounds the making of an archive, its client's pace included.
const archiveTimeout = 10 * time.Minute

// An ArchiveRequest asks for the files of a commit.
type ArchiveRequest struct {
	Commit tidelock.CommitID
	Path   string // only what is there; "" for all
	Format ArchiveFormat
	Prefix string // the directory that everything is put into
}

// Archive writes an archive as git makes it, without holding it in memory. Many
// can be under way, because a client may be slow, but they give way to fetches
// and pushes; more of them wait their turn.
func (r *Repo) Archive(ctx context.Context, req ArchiveRequest, out io.Writer) error {
	switch {
	case !isObjectName(req.Commit):
		return errNoCommit(string(req.Commit))
	case req.Format != TarGz && req.Format != Tar && req.Format != Zip:
		return tidelock.Errorf(tidelock.Invalid, "an archive is tar.gz, tar or zip, not %.100q", string(req.Format))
	case req.Path != "" && validPath(req.Path) != nil:
		return validPath(req.Path)
	}
	if err := r.exists(); err != nil {
		return err
	}
	release, err := r.disk.archives.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, archiveTimeout)
	defer cancel()
	args := []string{"archive", "--format=" + string(req.Format), "--prefix=" + strings.TrimSuffix(req.Prefix, "/") + "/", string(req.Commit), "--"}
	if req.Path != "" {
		args = append(args, req.Path)
	}
	cmd := r.disk.command(r, args...)
	client := &failing{out: out}
	cmd.Stdout = client
	err = r.disk.runThen(ctx, cmd, beNice)
	if client.err != nil {
		return errors.Join(tidelock.Errorf(tidelock.Unavailable, "the client left"), client.err)
	}
	return err
}

// Exists reports whether there is a file or a directory at a path of a commit.
func (r *Repo) Exists(ctx context.Context, commit tidelock.CommitID, path string) (bool, error) {
	if err := validPath(path); err != nil {
		return false, err
	}
	if !isObjectName(commit) {
		return false, errNoCommit(string(commit))
	}
	if err := r.exists(); err != nil {
		return false, err
	}
	out, err := r.disk.query(ctx, r.disk.command(r, "ls-tree", "-z", "--name-only", string(commit), "--", path))
	return len(out) > 0, err
}

// A failing writer remembers why it failed.
type failing struct {
	out io.Writer
	err error
}

func (f *failing) Write(p []byte) (int, error) {
	n, err := f.out.Write(p)
	if err != nil {
		f.err = err
	}
	return n, err
}
