package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/store"
)

// Options are for making and reading archives.
type Options struct {
	Version string // of this program
	// Scratch is a folder for what has to lie on disk for a moment: the rows of
	// the database, and one repository at a time.
	Scratch  string   // default os.TempDir()
	Progress Progress // default: nobody hears
}

// Create writes an archive of a server's data, while the server uses it or
// not. What was acknowledged before Create was called is in it.
func Create(ctx context.Context, d Data, w io.Writer, o Options) (_ Summary, err error) {
	scratch, err := os.MkdirTemp(o.Scratch, ".tidelock-backup-*")
	if err != nil {
		return Summary{}, fmt.Errorf("make a folder for the backup: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	compressed, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(4<<20))
	if err != nil {
		return Summary{}, fmt.Errorf("compress the backup: %w", err)
	}
	c := &creation{
		data: d, options: o, scratch: scratch, tar: tar.NewWriter(compressed),
		header: header{Format: format, Tidelock: o.Version, Made: time.Now().UTC().Truncate(time.Second)},
	}
	if err := c.run(ctx); err != nil {
		return Summary{}, errors.Join(err, compressed.Close())
	}
	if err := errors.Join(c.tar.Close(), compressed.Close()); err != nil {
		return Summary{}, fmt.Errorf("write the backup: %w", err)
	}
	return c.manifest.summary(c.header), nil
}

// A creation is the making of one archive.
type creation struct {
	data     Data
	options  Options
	scratch  string
	tar      *tar.Writer
	header   header
	manifest manifest
}

func (c *creation) run(ctx context.Context) error {
	if err := c.copyDatabase(ctx); err != nil {
		return err
	}
	if err := c.addJSON(headerName, c.header); err != nil {
		return err
	}
	for _, t := range c.header.Database.Tables {
		if err := c.addFile(ctx, tableMember(t.Name), c.scratchFile(t.Name)); err != nil {
			return err
		}
	}
	if err := c.addRepositories(ctx); err != nil {
		return err
	}
	for _, name := range c.data.Files {
		err := c.addFile(ctx, fileMember(name), c.data.file(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := c.addContent(ctx); err != nil {
		return err
	}
	return c.addJSON(manifestName, c.manifest)
}

func (c *creation) scratchFile(name string) string { return filepath.Join(c.scratch, name) }

// copyDatabase puts the rows on the disk, so that the database is read for as
// short as can be, however slowly the archive is taken.
func (c *creation) copyDatabase(ctx context.Context) (err error) {
	c.options.Progress.say("reading the database")
	c.header.Database, err = store.WriteDump(ctx, c.data.Database, func(table string) (io.WriteCloser, error) {
		return os.OpenFile(c.scratchFile(table), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	})
	return err
}

// addRepositories adds those of the projects that the database knows.
func (c *creation) addRepositories(ctx context.Context) error {
	projects, err := c.projects()
	if err != nil {
		return err
	}
	disk, err := gitrepo.OpenBeside(ctx, gitrepo.Config{Dir: c.data.repositories(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	c.manifest.Repositories = []repository{}
	for i, id := range projects {
		c.options.Progress.say("repository %d of %d: project %d", i+1, len(projects), id)
		if err := c.addRepository(ctx, disk.Repo(id), id); err != nil {
			return err
		}
	}
	return nil
}

// addContent adds what images hold. What is deleted meanwhile is left out.
func (c *creation) addContent(ctx context.Context) error {
	c.options.Progress.say("copying the content of images")
	dir := c.data.content()
	return registry.Files(ctx, dir, func(name string) error {
		err := c.addFile(ctx, contentMember(name), registry.FilePath(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// attempts to copy a repository. Once in a blue moon git removes an old object
// just after the last ref to it has gone.
const attempts = 3

func (c *creation) addRepository(ctx context.Context, repo *gitrepo.Repo, id tidelock.ProjectID) error {
	name := c.scratchFile("bundle")
	defer os.Remove(name)
	var bundle gitrepo.Bundle
	for n := 1; ; n++ {
		var err error
		bundle, err = writeBundle(ctx, repo, name)
		if tidelock.KindOf(err) == tidelock.NotFound {
			c.manifest.Repositories = append(c.manifest.Repositories, repository{ID: id, Missing: true})
			return nil
		}
		if err == nil {
			break
		}
		if n == attempts || ctx.Err() != nil {
			return err
		}
	}
	c.manifest.Repositories = append(c.manifest.Repositories, repository{
		ID: id, DefaultBranch: bundle.DefaultBranch, Refs: bundle.Refs,
	})
	if bundle.Refs == 0 {
		return nil
	}
	return c.addFile(ctx, repositoryMember(id), name)
}

func writeBundle(ctx context.Context, repo *gitrepo.Repo, name string) (_ gitrepo.Bundle, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return gitrepo.Bundle{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return repo.WriteBundle(ctx, f)
}

// projects reads, from the rows that were just copied, which there are.
func (c *creation) projects() ([]tidelock.ProjectID, error) {
	for _, t := range c.header.Database.Tables {
		if t.Name != "projects" {
			continue
		}
		f, err := os.Open(c.scratchFile(t.Name))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		ids, err := t.IDs(f)
		if err != nil {
			return nil, err
		}
		projects := make([]tidelock.ProjectID, len(ids))
		for i, id := range slices.Sorted(slices.Values(ids)) {
			projects[i] = tidelock.ProjectID(id)
		}
		return projects, nil
	}
	return nil, errors.New("the database has no table of projects")
}

// addFile adds a member of what a file holds now.
func (c *creation) addFile(ctx context.Context, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("add %s to the backup: %w", name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("add %s to the backup: %w", name, err)
	}
	return c.add(name, info.Size(), reader{ctx, f})
}

func (c *creation) addJSON(name string, v any) error {
	text, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("add %s to the backup: %w", name, err)
	}
	return c.add(name, int64(len(text)), bytes.NewReader(text))
}

func (c *creation) add(name string, size int64, content io.Reader) error {
	if err := c.tar.WriteHeader(tarHeader(name, size, c.header.Made)); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(c.tar, sum), io.LimitReader(content, size))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("add %s to the backup: %w", name, err)
	}
	c.manifest.Members = append(c.manifest.Members, member{name, size, hex.EncodeToString(sum.Sum(nil))})
	return nil
}

// A reader ends with its context.
type reader struct {
	ctx context.Context
	in  io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.in.Read(p)
}

func (m manifest) summary(h header) Summary {
	s := Summary{Made: h.Made, Version: h.Tidelock, Schema: h.Database.Schema}
	for _, t := range h.Database.Tables {
		s.Rows += t.Rows
	}
	for _, r := range m.Repositories {
		if r.Missing {
			s.Missing = append(s.Missing, r.ID)
			continue
		}
		s.Repositories++
		s.Refs += r.Refs
	}
	for _, member := range m.Members {
		s.Bytes += member.Size
	}
	return s
}

// String is a line for people.
func (s Summary) String() string {
	text := fmt.Sprintf("%d repositories with %d refs, %d rows, schema version %d, made %s by tidelock %s",
		s.Repositories, s.Refs, s.Rows, s.Schema, s.Made.Format(time.RFC3339), s.Version)
	if len(s.Missing) > 0 {
		ids := strings.Trim(fmt.Sprint(s.Missing), "[]")
		text += "; deleted meanwhile: projects " + ids
	}
	const most = 10
	if n := len(s.Lost); n > 0 {
		text += fmt.Sprintf("\nwarning: of images, %d manifests and blobs are not in the archive", n)
		for _, lost := range s.Lost[:min(n, most)] {
			text += "\n  " + lost
		}
		if n > most {
			text += "\n  and more"
		}
		text += "\nthis is as it should be if they are in a bucket (--registry-url), or were deleted while the backup was made;\notherwise push them again"
	}
	return text
}
