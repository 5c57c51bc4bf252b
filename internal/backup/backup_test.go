package backup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"tidelock.dev"
	"tidelock.dev/internal/backup"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/store/storetest"
)

var files = []string{"secret.key", "tls/ca.crt"}

// A source is a data folder with three projects: one with a commit, an empty
// one and one whose repository is missing.
type source struct {
	backup.Data
	t     *testing.T
	db    *store.DB
	disk  *gitrepo.Disk
	full  tidelock.Project
	empty tidelock.Project
	lost  tidelock.Project
}

func newSource(t *testing.T) *source {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	s := &source{t: t, Data: backup.Data{Dir: dir, Database: "sqlite:" + filepath.Join(dir, "tidelock.db"), Files: files}}
	var err error
	s.db, err = store.Open(ctx, store.Config{URL: s.Database})
	s.must(err)
	t.Cleanup(func() { s.db.Close() })
	s.disk, err = gitrepo.Open(ctx, gitrepo.Config{Dir: filepath.Join(dir, "repositories"), Log: slog.New(slog.DiscardHandler)})
	s.must(err)
	team, err := s.db.CreateNamespace(ctx, tidelock.Namespace{Path: "team", Name: "Team"}, 0)
	s.must(err)
	for _, p := range []*tidelock.Project{&s.full, &s.empty, &s.lost} {
		*p, err = s.db.CreateProject(ctx, tidelock.Project{
			Namespace: team.ID, Path: fmt.Sprintf("p%p", p), Name: fmt.Sprintf("p%p", p), DefaultBranch: "trunk",
		})
		s.must(err)
	}
	s.must(s.disk.Create(ctx, s.full.ID, "trunk"))
	s.must(s.disk.Create(ctx, s.empty.ID, "trunk"))
	work := t.TempDir()
	s.git(work, "init", "--quiet", "--initial-branch=trunk")
	s.must(os.WriteFile(filepath.Join(work, "app.yaml"), bytes.Repeat([]byte("kind: ConfigMap\n"), 1000), 0o644))
	s.git(work, "add", ".")
	s.git(work, "commit", "--quiet", "-m", "Say hello")
	s.git(work, "push", "--quiet", s.disk.Repo(s.full.ID).Path(), "trunk")
	s.must(os.WriteFile(filepath.Join(dir, "secret.key"), []byte("secret\n"), 0o600))
	s.must(os.MkdirAll(filepath.Join(dir, "tls"), 0o700))
	s.must(os.WriteFile(filepath.Join(dir, "tls", "ca.crt"), []byte("certificate\n"), 0o644))
	s.must(os.WriteFile(filepath.Join(dir, "root.token"), []byte("not for others\n"), 0o600))
	return s
}

func (s *source) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *source) git(dir string, args ...string) string {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (s *source) archive() []byte {
	s.t.Helper()
	var text bytes.Buffer
	summary, err := backup.Create(s.t.Context(), s.Data, &text, backup.Options{Version: "1.2.3", Scratch: s.t.TempDir()})
	s.must(err)
	if summary.Repositories != 2 || summary.Refs != 1 || !slices.Equal(summary.Missing, []tidelock.ProjectID{s.lost.ID}) || summary.Rows < 4 {
		s.t.Errorf("got %+v", summary)
	}
	return text.Bytes()
}

// target is an empty place to restore into.
func target(t *testing.T) backup.Data {
	dir := t.TempDir()
	return backup.Data{Dir: dir, Database: "sqlite:" + filepath.Join(dir, "tidelock.db"), Files: files}
}

func restore(t *testing.T, to backup.Data, archive []byte) error {
	t.Helper()
	_, err := backup.Restore(t.Context(), to, bytes.NewReader(archive), backup.Options{})
	return err
}

func tree(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if rel, _ := filepath.Rel(dir, path); rel != "." && strings.Count(rel, "/") < 2 {
			names = append(names, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestCreateAndRestore(t *testing.T) {
	s := newSource(t)
	archive := s.archive()
	if _, err := backup.Verify(t.Context(), s.Data, bytes.NewReader(archive), backup.Options{Scratch: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	to := target(t)
	for _, name := range []string{"server.lock", "lost+found"} { // are no data
		s.must(os.WriteFile(filepath.Join(to.Dir, name), nil, 0o600))
	}
	if err := restore(t, to, archive); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"lost+found", "repositories", fmt.Sprintf("repositories/%d.git", s.full.ID), fmt.Sprintf("repositories/%d.git", s.empty.ID),
		"secret.key", "server.lock", "tidelock.db", "tls", "tls/ca.crt",
	}
	if got := tree(t, to.Dir); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, name := range []string{"secret.key", "tidelock.db"} {
		info, err := os.Stat(filepath.Join(to.Dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: got %v, %v, want mode 0600", name, info.Mode(), err)
		}
	}
	repo := filepath.Join(to.Dir, want[2])
	if got, want := s.git(repo, "rev-parse", "HEAD"), s.git(s.disk.Repo(s.full.ID).Path(), "rev-parse", "HEAD"); got != want {
		t.Errorf("HEAD is %s, want %s", got, want)
	}
	if got := s.git(filepath.Join(to.Dir, want[3]), "symbolic-ref", "HEAD"); got != "refs/heads/trunk" {
		t.Errorf("HEAD of the empty repository is %s", got)
	}
	db, err := store.Open(t.Context(), store.Config{URL: to.Database})
	s.must(err)
	defer db.Close()
	if p, err := db.Project(t.Context(), s.full.ID); err != nil || p != s.full {
		t.Errorf("got %+v, %v, want %+v", p, err, s.full)
	}
}

func TestRestoreRefusesWhatIsNotEmpty(t *testing.T) {
	s := newSource(t)
	archive := s.archive()
	for name, prepare := range map[string]func(backup.Data) error{
		"a file":         func(d backup.Data) error { return os.WriteFile(filepath.Join(d.Dir, "secret.key"), []byte("x"), 0o600) },
		"an earlier try": func(d backup.Data) error { return os.Mkdir(filepath.Join(d.Dir, backup.Unfinished), 0o700) },
		"a folder":       func(d backup.Data) error { return os.Mkdir(filepath.Join(d.Dir, "repositories"), 0o700) },
		"a database inside": func(d backup.Data) error {
			return os.WriteFile(filepath.Join(d.Dir, "tidelock.db"), []byte("x"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			to := target(t)
			s.must(prepare(to))
			before := tree(t, to.Dir)
			if err := restore(t, to, archive); tidelock.KindOf(err) != tidelock.Conflict {
				t.Errorf("got %v, want a conflict", err)
			}
			if after := tree(t, to.Dir); !slices.Equal(before, after) {
				t.Errorf("it left %v, want %v", after, before)
			}
		})
	}
	t.Run("a database elsewhere", func(t *testing.T) {
		to := target(t)
		to.Database = "sqlite:" + filepath.Join(t.TempDir(), "other.db")
		s.must(os.WriteFile(strings.TrimPrefix(to.Database, "sqlite:"), []byte("x"), 0o600))
		if err := restore(t, to, archive); tidelock.KindOf(err) != tidelock.Conflict {
			t.Errorf("got %v, want a conflict", err)
		}
		if after := tree(t, to.Dir); len(after) != 0 {
			t.Errorf("it left %v", after)
		}
	})
	t.Run("a full PostgreSQL", func(t *testing.T) {
		to := target(t)
		to.Database = storetest.Postgres(t)
		s.must(restore(t, to, archive))
		again := target(t)
		again.Database = to.Database
		if err := restore(t, again, archive); tidelock.KindOf(err) != tidelock.Conflict {
			t.Errorf("got %v, want a conflict", err)
		}
		if after := tree(t, again.Dir); len(after) != 0 {
			t.Errorf("it left %v", after)
		}
	})
}

// A tarMember is one to be written by hand.
type tarMember struct {
	tar.Header
	content []byte
}

func members(t *testing.T, archive []byte) (all []tarMember) {
	t.Helper()
	plain, err := zstd.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for in := tar.NewReader(plain); ; {
		h, err := in.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, tarMember{*h, content})
	}
}

func packed(t *testing.T, all []tarMember) []byte {
	t.Helper()
	var text bytes.Buffer
	compressed, err := zstd.NewWriter(&text)
	if err != nil {
		t.Fatal(err)
	}
	out := tar.NewWriter(compressed)
	for _, m := range all {
		if m.Typeflag == tar.TypeReg {
			m.Size = int64(len(m.content))
		}
		m.Format = tar.FormatUnknown
		if err := out.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(out.Close(), compressed.Close()); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

func regular(name, content string) tarMember {
	return tarMember{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o777}, []byte(content)}
}

// Whatever an archive holds, restoring it writes nowhere else, says what is
// wrong, and leaves nothing.
func TestH6BadArchives(t *testing.T) {
	s := newSource(t)
	archive := s.archive()
	find := func(all []tarMember, name string) int {
		i := slices.IndexFunc(all, func(m tarMember) bool { return strings.HasPrefix(m.Name, name) })
		if i < 0 {
			t.Fatalf("there is no %s", name)
		}
		return i
	}
	changed := func(name, from, to string) func([]tarMember) []tarMember {
		return func(all []tarMember) []tarMember {
			i := find(all, name)
			changed := bytes.Replace(all[i].content, []byte(from), []byte(to), 1)
			if bytes.Equal(changed, all[i].content) {
				t.Fatalf("%s has no %q", name, from)
			}
			all[i].content = changed
			return all
		}
	}
	inserted := func(before string, m tarMember) func([]tarMember) []tarMember {
		return func(all []tarMember) []tarMember { return slices.Insert(all, find(all, before), m) }
	}
	removed := func(name string) func([]tarMember) []tarMember {
		return func(all []tarMember) []tarMember { i := find(all, name); return slices.Delete(all, i, i+1) }
	}
	for name, tc := range map[string]struct {
		change func([]tarMember) []tarMember
		says   string
	}{
		"traversal":                     {inserted("manifest", regular("files/../../../outside", "x")), "it has a file"},
		"traversal in a repository":     {inserted("files/", regular("repositories/../1.bundle", "x")), "it has a member"},
		"traversal in a table":          {inserted("repositories/", regular("database/../../x.jsonl", "x")), "not announced"},
		"absolute":                      {inserted("manifest", regular("/etc/passwd", "x")), "it has a member"},
		"an unknown file":               {inserted("manifest", regular("files/root.token", "x")), "it has a file"},
		"an unknown part":               {inserted("manifest", regular("registry/x", "x")), "it has a member"},
		"a repository by a name":        {inserted("files/", regular("repositories/-1.bundle", "x")), "it has a member"},
		"a repository by an odd number": {inserted("files/", regular("repositories/007.bundle", "x")), "it has a member"},
		"a symbolic link": {inserted("manifest", tarMember{Header: tar.Header{
			Typeflag: tar.TypeSymlink, Name: "files/tls/ca.crt", Linkname: "/etc/passwd"}}), "it has a member"},
		"a hard link": {inserted("manifest", tarMember{Header: tar.Header{
			Typeflag: tar.TypeLink, Name: "files/tls/ca.crt", Linkname: "files/secret.key"}}), "it has a member"},
		"a folder":         {inserted("manifest", tarMember{Header: tar.Header{Typeflag: tar.TypeDir, Name: "files/tls/"}}), "it has a member"},
		"a fifo":           {inserted("manifest", tarMember{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "files/tls/ca.crt"}}), "it has a member"},
		"a file too large": {changed("files/secret.key", "secret", strings.Repeat("x", 2<<20)), "has 2097153 bytes"},
		"a member twice":   {func(all []tarMember) []tarMember { i := find(all, "files/"); return slices.Insert(all, i, all[i]) }, "twice"},
		"the wrong order": {func(all []tarMember) []tarMember {
			i, j := find(all, "files/"), find(all, "repositories/")
			all[i], all[j] = all[j], all[i]
			return all
		}, "wrong place"},
		"no header":               {removed("backup.json"), "wrong place"},
		"no manifest":             {removed("manifest.json"), "ends too early"},
		"no repository":           {removed("repositories/"), "its manifest tells of"},
		"no rows":                 {removed("database/users"), "its manifest tells of"},
		"another format":          {changed("backup.json", `"format": 2`, `"format": 3`), "format 3"},
		"a newer schema":          {changed("backup.json", `"schema": `, `"schema": 9`), "knows up to"},
		"a changed file":          {changed("files/secret.key", "secret", "SECRET"), `"files/secret.key" is not what was written`},
		"a changed row":           {changed("database/projects.jsonl", "trunk", "TRUNK"), `"database/projects.jsonl" is not what was written`},
		"a table by a bad name":   {changed("backup.json", `"users"`, `"../users"`), "makes no sense"},
		"refs miscounted":         {changed("manifest.json", `"refs": 1`, `"refs": 2`), "is not what was written"},
		"a branch by a bad name":  {changed("manifest.json", `"default_branch": "`, `"default_branch": "../../`), "default branch of repository"},
		"a branch like an option": {changed("manifest.json", `"default_branch": "`, `"default_branch": "--template=`), "default branch of repository"},
		"a terminal's orders":     {changed("backup.json", `"tidelock": "`, `"tidelock": "\u001b]0;`), "makes no sense"},
		"after the end":           {func(all []tarMember) []tarMember { return append(all, regular("files/tls/ca.crt", "x")) }, "goes on after its manifest"},
		"nothing in it":           {func([]tarMember) []tarMember { return nil }, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, packed(t, tc.change(members(t, archive))), tc.says)
		})
	}
	t.Run("not an archive", func(t *testing.T) { refused(t, []byte("hello, this is no backup"), "damaged") })
	t.Run("empty", func(t *testing.T) { refused(t, nil, "damaged") })
	t.Run("more behind it", func(t *testing.T) { refused(t, append(bytes.Clone(archive), "more"...), "goes on after its end") })
	t.Run("two in one", func(t *testing.T) { refused(t, append(bytes.Clone(archive), archive...), "goes on after its end") })
}

// refused checks that an archive is neither verified nor restored.
func refused(t *testing.T, archive []byte, says string) {
	t.Helper()
	outer := t.TempDir()
	to := backup.Data{Dir: filepath.Join(outer, "data"), Files: files}
	to.Database = "sqlite:" + filepath.Join(to.Dir, "tidelock.db")
	if err := os.Mkdir(to.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := restore(t, to, archive); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("got error %v, want one that says %q", err, says)
	}
	if got := tree(t, outer); !slices.Equal(got, []string{"data"}) {
		t.Errorf("it left %v", got)
	}
	if _, err := backup.Verify(t.Context(), to, bytes.NewReader(archive), backup.Options{Scratch: to.Dir}); err == nil {
		t.Error("it was verified")
	}
	if got := tree(t, outer); !slices.Equal(got, []string{"data"}) {
		t.Errorf("verifying left %v", got)
	}
}

// No cut and no flipped bit goes unnoticed.
func TestH6CutAndFlipped(t *testing.T) {
	archive := newSource(t).archive()
	d := backup.Data{Files: files}
	verify := func(text []byte) error {
		_, err := backup.Verify(t.Context(), d, bytes.NewReader(text), backup.Options{Scratch: t.TempDir()})
		return err
	}
	const tries = 25
	for i := range tries {
		at := (len(archive) - 1) * i / (tries - 1)
		if verify(archive[:at]) == nil {
			t.Errorf("cut after %d of %d bytes: it was verified", at, len(archive))
		}
		flipped := bytes.Clone(archive)
		flipped[at] ^= 1 << (i % 8)
		if verify(flipped) == nil {
			t.Errorf("bit %d of byte %d flipped: it was verified", i%8, at)
		}
	}
}

func TestCancelled(t *testing.T) {
	s := newSource(t)
	archive := s.archive()
	for n := range 12 {
		// Cancelled by what it says: after each step once.
		ctx, cancel := context.WithCancel(t.Context())
		steps := 0
		o := backup.Options{Scratch: t.TempDir(), Progress: func(string, ...any) {
			if steps++; steps == n {
				cancel()
			}
		}}
		_, err := backup.Create(ctx, s.Data, io.Discard, o)
		if got := tree(t, o.Scratch); len(got) != 0 {
			t.Errorf("a backup left %v", got)
		}
		if ctx.Err() != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("backup cancelled in step %d: got %v", n, err)
		}
		cancel()

		ctx, cancel = context.WithCancel(t.Context())
		steps = 0
		to := target(t)
		_, err = backup.Restore(ctx, to, bytes.NewReader(archive), o)
		if ctx.Err() != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("restore cancelled in step %d: got %v", n, err)
		}
		if got := tree(t, to.Dir); err != nil && len(got) != 0 {
			t.Errorf("restore cancelled in step %d left %v", n, got)
		}
		cancel()
	}
}

// full is a disk without room.
type full struct{ after int }

var errFull = errors.New("no space left")

func (f *full) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestNowhereToWrite(t *testing.T) {
	s := newSource(t)
	for _, after := range []int{0, 100} {
		scratch := t.TempDir()
		if _, err := backup.Create(t.Context(), s.Data, &full{after}, backup.Options{Scratch: scratch}); !errors.Is(err, errFull) {
			t.Errorf("got %v, want %v", err, errFull)
		}
		if got := tree(t, scratch); len(got) != 0 {
			t.Errorf("it left %v", got)
		}
	}
}

// A repository that git cannot read must not be passed over.
func TestBrokenRepository(t *testing.T) {
	s := newSource(t)
	packs, err := filepath.Glob(filepath.Join(s.disk.Repo(s.full.ID).Path(), "objects", "*"))
	s.must(err)
	for _, name := range packs {
		s.must(os.RemoveAll(name))
	}
	_, err = backup.Create(t.Context(), s.Data, io.Discard, backup.Options{Scratch: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("repository %d", s.full.ID)) {
		t.Errorf("got %v, want an error that names the repository", err)
	}
}
