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
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/klauspost/compress/zstd"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/registry"
)

// Verify reads an archive to its end and checks everything in it: that it is
// whole, that the rows can be read, and that git can make repositories of the
// bundles. It writes to the scratch folder only.
func Verify(ctx context.Context, d Data, archive io.Reader, o Options) (_ Summary, err error) {
	dir, err := os.MkdirTemp(o.Scratch, ".tidelock-verify-*")
	if err != nil {
		return Summary{}, fmt.Errorf("make a folder to verify in: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	x := &extraction{files: d.Files, dir: dir, options: o}
	if err := x.run(ctx, archive); err != nil {
		return Summary{}, err
	}
	return x.summary(), nil
}

// An extraction reads one archive into a folder, and believes nothing in it.
type extraction struct {
	files   []string // names of files that may be there
	dir     string
	keep    bool // the repositories and rows; without it they are only looked at
	options Options
	// begun, when set, hears the header before anything else is read.
	begun func(header) error

	disk     *gitrepo.Disk
	header   header
	manifest manifest
	members  []member // but the manifest
	names    map[string]bool
	bundles  map[tidelock.ProjectID]int
	record   record
}

// damaged is an error of what was read.
func damaged(format string, args ...any) error {
	return tidelock.Errorf(tidelock.Invalid, "the backup is damaged or not one: "+format, args...)
}

func (x *extraction) run(ctx context.Context, archive io.Reader) (err error) {
	x.names = map[string]bool{}
	x.bundles = map[tidelock.ProjectID]int{}
	x.disk, err = gitrepo.Open(ctx, gitrepo.Config{Dir: filepath.Join(x.dir, repositories), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for _, folder := range []string{"database", "files"} {
		if err := os.Mkdir(filepath.Join(x.dir, folder), 0o700); err != nil {
			return err
		}
	}
	plain, err := zstd.NewReader(reader{ctx, archive}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	defer plain.Close()
	in := tar.NewReader(plain)
	at, ended := headerPart, false
	for !ended {
		h, err := in.Next()
		if err != nil {
			return x.readError(ctx, err)
		}
		p, name, ok := partOf(h.Name)
		switch {
		case h.Typeflag != tar.TypeReg || !ok:
			return damaged("it has a member %.100q", h.Name)
		case x.names[h.Name]:
			return damaged("it has the member %q twice", h.Name)
		case p < at, (p == headerPart) != (len(x.members) == 0):
			return damaged("its member %q comes in the wrong place", h.Name)
		}
		at, ended, x.names[h.Name] = p, p == manifestPart, true
		if err := x.member(ctx, p, name, h, in); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
	}
	if _, err := in.Next(); err != io.EOF {
		return damaged("it goes on after its manifest")
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(plain, 1)); n != 0 || err != nil {
		return damaged("it goes on after its end")
	}
	return x.complete()
}

func (x *extraction) readError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case len(x.members) == 0:
		return damaged("%v", err)
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return damaged("it ends too early, after %q", x.members[len(x.members)-1].Name)
	}
	return damaged("%v, after %q", err, x.members[len(x.members)-1].Name)
}

// member reads one member to its end.
func (x *extraction) member(ctx context.Context, p part, name string, h *tar.Header, in io.Reader) error {
	sum := sha256.New()
	content := io.TeeReader(in, sum)
	var err error
	switch p {
	case headerPart:
		err = x.readHeader(h, content)
	case databasePart:
		err = x.readTable(name, content)
	case repositoryPart:
		err = x.readBundle(ctx, name, content)
	case filePart:
		err = x.readFile(name, h, content)
	case contentPart:
		err = x.readContent(name, content)
	case manifestPart:
		return decode(h, content, maxManifest, &x.manifest)
	}
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, content); err != nil {
		return damaged("%v, in %q", err, h.Name)
	}
	x.members = append(x.members, member{h.Name, h.Size, hex.EncodeToString(sum.Sum(nil))})
	return nil
}

func decode(h *tar.Header, content io.Reader, most int64, into any) error {
	if h.Size > most {
		return damaged("%q has %d bytes", h.Name, h.Size)
	}
	text, err := io.ReadAll(content)
	if err != nil {
		return damaged("%v, in %q", err, h.Name)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return damaged("%q: %v", h.Name, err)
	}
	return nil
}

func (x *extraction) readHeader(h *tar.Header, content io.Reader) error {
	if h.Size > maxHeader {
		return damaged("%q has %d bytes", h.Name, h.Size)
	}
	text, err := io.ReadAll(content)
	if err != nil {
		return damaged("%v, in %q", err, h.Name)
	}
	var form struct{ Format int }
	if err := json.Unmarshal(text, &form); err != nil {
		return damaged("%q: %v", h.Name, err)
	}
	if form.Format < 1 || form.Format > format {
		return tidelock.Errorf(tidelock.Invalid, "the backup has format %d and this program reads %d; use the tidelock that made it", form.Format, format)
	}
	if err := json.Unmarshal(text, &x.header); err != nil {
		return damaged("%q: %v", h.Name, err)
	}
	if strings.ContainsFunc(x.header.Tidelock, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return damaged("the version %.100q makes no sense", x.header.Tidelock) // it comes to a terminal
	}
	if err := x.header.Database.Validate(); err != nil {
		return err
	}
	if x.begun != nil {
		return x.begun(x.header)
	}
	return nil
}

func (x *extraction) readTable(name string, content io.Reader) error {
	for _, t := range x.header.Database.Tables {
		if t.Name != name {
			continue
		}
		content := x.record.watch(t, content)
		if !x.keep {
			if err := t.Check(content); err != nil {
				return damaged("%v", err)
			}
			return nil
		}
		return writeNew(x.tableFile(name), content)
	}
	return damaged("its table %.100q is not announced", name)
}

func (x *extraction) summary() Summary {
	s := x.manifest.summary(x.header)
	s.Lost = x.record.lost(x.members)
	return s
}

func (x *extraction) tableFile(name string) string {
	return filepath.Join(x.dir, "database", name+".jsonl")
}

func (x *extraction) readBundle(ctx context.Context, name string, content io.Reader) error {
	n, err := strconv.ParseInt(name, 10, 64)
	if err != nil {
		return damaged("%v", err)
	}
	id := tidelock.ProjectID(n)
	x.options.Progress.say("repository of project %d", id)
	bundle, err := x.disk.Unbundle(ctx, id, content)
	if err != nil {
		return damaged("%v", err)
	}
	x.bundles[id] = bundle.Refs
	if x.keep {
		return nil
	}
	return x.disk.Delete(ctx, id)
}

func (x *extraction) readFile(name string, h *tar.Header, content io.Reader) error {
	if !slices.Contains(x.files, name) {
		return damaged("it has a file %.100q", name)
	}
	if h.Size > maxFile {
		return damaged("its file %q has %d bytes", name, h.Size)
	}
	path := filepath.Join(x.dir, "files", filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return writeNew(path, content)
}

// readContent reads a file of the content of images. One that holds something
// other than its name says would be served to nobody.
func (x *extraction) readContent(name string, in io.Reader) error {
	if !x.keep {
		return nil // the manifest has its hash
	}
	path := registry.FilePath(filepath.Join(x.dir, content), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return writeNew(path, in)
}

// writeNew writes a file that does not exist, and waits for the disk.
func writeNew(path string, content io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, content); err != nil {
		return damaged("%v", err)
	}
	return f.Sync()
}

// complete compares what was there with what should be.
func (x *extraction) complete() error {
	if len(x.manifest.Members) != len(x.members) {
		return damaged("its manifest tells of %d members, but it has %d", len(x.manifest.Members), len(x.members))
	}
	have := map[string]bool{}
	for i, m := range x.members {
		if x.manifest.Members[i] != m {
			return damaged("%q is not what was written", m.Name)
		}
		have[m.Name] = true
	}
	for _, t := range x.header.Database.Tables {
		if !have[tableMember(t.Name)] {
			return damaged("the rows of table %q are missing", t.Name)
		}
	}
	told := map[tidelock.ProjectID]bool{}
	for _, r := range x.manifest.Repositories {
		refs, ok := x.bundles[r.ID]
		if told[r.ID] || r.ID <= 0 || refs != r.Refs || ok != (r.Refs > 0) || r.Missing && ok {
			return damaged("repository %d is not what was written", r.ID)
		}
		if err := tidelock.ValidRef(tidelock.BranchRef(r.DefaultBranch)); err != nil && r.DefaultBranch != "" {
			return damaged("the default branch of repository %d: %v", r.ID, err)
		}
		told[r.ID] = true
	}
	for id := range x.bundles {
		if !told[id] {
			return damaged("repository %d is not in its manifest", id)
		}
	}
	return nil
}
