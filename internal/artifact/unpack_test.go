package artifact_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
)

// tarball packs entries as they are, however bad.
func tarball(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := []byte(h.Linkname)
		if h.Typeflag == tar.TypeReg || h.Typeflag == 0 {
			h.Typeflag, h.Linkname, h.Size = tar.TypeReg, "", int64(len(content))
		}
		if h.Mode == 0 && h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// regular is a file; its content travels as the link's name.
func regular(name, content string) tar.Header { return tar.Header{Name: name, Linkname: content} }

func zipped(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func part(content []byte) tidelock.Part {
	return tidelock.Part{Digest: tidelock.DigestOf(content), Size: int64(len(content))}
}

func unpack(content []byte, dir string) (artifact.Unpacked, error) {
	return artifact.Unpack(bytes.NewReader(content), part(content), dir)
}

// tree lists a folder: every path below it, with its mode and content.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := []byte{}
		if d.Type().IsRegular() {
			if content, err = os.ReadFile(name); err != nil {
				return err
			}
		}
		rel, err := filepath.Rel(dir, name)
		found[rel] = fmt.Sprintf("%v %s", info.Mode(), content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestPackedIsUnpacked(t *testing.T) {
	layer := pack(t, files...)
	outer := t.TempDir()
	for _, dir := range []string{filepath.Join(outer, "missing", "folder"), t.TempDir()} {
		got, err := unpack(layer.Content, dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.Files != len(files) {
			t.Errorf("unpacked %d files, want %d", got.Files, len(files))
		}
		found := tree(t, dir)
		for _, f := range files {
			mode := "-rw-r--r-- "
			if f.Executable {
				mode = "-rwxr-xr-x "
			}
			if found[f.Path] != mode+string(f.Content) {
				t.Errorf("%s is %.60q", f.Path, found[f.Path])
			}
		}
		for name, is := range found {
			if strings.Contains(name, ".tidelock") {
				t.Errorf("%s was left behind: %.60q", name, is)
			}
		}
	}
	if _, err := unpack(layer.Content, outer); tidelock.KindOf(err) != tidelock.Conflict {
		t.Errorf("into a folder that is not empty: %v, want a conflict", err)
	}
}

// TestUnpackOthers takes what tar and git make, with a "./" before names,
// entries for folders and a note of the commit.
func TestUnpackOthers(t *testing.T) {
	content := zipped(t, append(tarball(t,
		tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "1234"}},
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700},
		tar.Header{Typeflag: tar.TypeDir, Name: "./app/", Mode: 0o700},
		tar.Header{Name: "./app/run", Linkname: "#!", Mode: 0o4711, Uid: 12},
		tar.Header{Typeflag: tar.TypeDir, Name: "app"},
	), make([]byte, 8<<10)...))
	dir := t.TempDir()
	if _, err := unpack(content, dir); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, dir); got["app/run"] != "-rwxr-xr-x #!" || len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

func TestHostileLayers(t *testing.T) {
	good := tarball(t, regular("a.yaml", "kind: A\n"))
	huge := tarball(t, regular("a.yaml", "kind: A\n"), regular("zero", strings.Repeat("\x00", 4<<20)))
	deep := strings.Repeat("d/", 100) + "a.yaml"
	for name, c := range map[string]struct {
		content []byte
		kind    tidelock.Kind
		want    string
	}{
		"an absolute path":            {zipped(t, tarball(t, regular("/etc/cron.d/x", "x"))), tidelock.Invalid, "clean relative path"},
		"a path upwards":              {zipped(t, tarball(t, regular("../x", "x"))), tidelock.Invalid, "clean relative path"},
		"a path up and down":          {zipped(t, tarball(t, regular("a/../../x", "x"))), tidelock.Invalid, "clean relative path"},
		"a folder upwards":            {zipped(t, tarball(t, tar.Header{Typeflag: tar.TypeDir, Name: "../x/"})), tidelock.Invalid, "clean relative path"},
		"a backslash":                 {zipped(t, tarball(t, regular(`..\x`, "x"))), tidelock.Invalid, "backslash"},
		"a symlink out":               {zipped(t, tarball(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/etc"}, regular("a/passwd", "x"))), tidelock.Invalid, "is a link"},
		"a symlink inside":            {zipped(t, tarball(t, regular("a", "x"), tar.Header{Typeflag: tar.TypeSymlink, Name: "b", Linkname: "a"})), tidelock.Invalid, "is a link"},
		"a hard link":                 {zipped(t, tarball(t, tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "../../etc/passwd"})), tidelock.Invalid, "is a link"},
		"a device":                    {zipped(t, tarball(t, tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8})), tidelock.Invalid, "device"},
		"a pipe":                      {zipped(t, tarball(t, tar.Header{Typeflag: tar.TypeFifo, Name: "p"})), tidelock.Invalid, "device"},
		"a file twice":                {zipped(t, tarball(t, regular("a", "1"), regular("a", "2"))), tidelock.Invalid, "twice"},
		"a file under two names":      {zipped(t, tarball(t, regular("a", "1"), regular("./a", "2"))), tidelock.Invalid, "twice"},
		"files that differ in case":   {zipped(t, tarball(t, regular("a", "1"), regular("A", "2"))), tidelock.Invalid, "only in case"},
		"folders that differ in case": {zipped(t, tarball(t, regular("a/x", "1"), regular("A/y", "2"))), tidelock.Invalid, "only in case"},
		"a Kelvin sign":               {zipped(t, tarball(t, regular("k", "1"), regular("\u212a", "2"))), tidelock.Invalid, "only in case"},
		"a file as a folder":          {zipped(t, tarball(t, regular("a", "1"), regular("a/b", "2"))), tidelock.Invalid, "a file and a directory"},
		"a folder as a file":          {zipped(t, tarball(t, regular("a/b", "1"), regular("a", "2"))), tidelock.Invalid, "a file and a directory"},
		"a repository's hook":         {zipped(t, tarball(t, regular("a/.Git/hooks/post-checkout", "x"))), tidelock.Invalid, "by git"},
		"too deep":                    {zipped(t, tarball(t, regular(deep, "x"))), tidelock.Invalid, "deeper"},
		"a bomb":                      {zipped(t, huge), tidelock.TooLarge, "times as large"},
		"a lie about its size":        {zipped(t, hugeHeader(t)), tidelock.TooLarge, "larger than"},
		"no file":                     {zipped(t, tarball(t)), tidelock.Invalid, "no file"},
		"folders alone":               {zipped(t, tarball(t, tar.Header{Typeflag: tar.TypeDir, Name: "a/"})), tidelock.Invalid, "no file"},
		"a second archive behind":     {zipped(t, append(bytes.Clone(good), tarball(t, regular("b.yaml", "x"))...)), tidelock.Invalid, "after the end"},
		"no gzip":                     {good, tidelock.Invalid, "not compressed with gzip"},
		"no tar":                      {zipped(t, []byte(strings.Repeat("kind: A\n", 200))), tidelock.Invalid, "not a tar"},
		"garbage behind":              {append(zipped(t, good), "garbage"...), tidelock.Invalid, "broken"},
		"a file cut short":            {zipped(t, good[:514]), tidelock.Invalid, "broken"},
		"compression cut short":       {zipped(t, good)[:60], tidelock.Invalid, "broken"},
		"nothing":                     {nil, tidelock.Invalid, "not compressed with gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			outer := t.TempDir()
			_, err := unpack(c.content, filepath.Join(outer, "out"))
			if tidelock.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it refused with %q", err, c.want)
			}
			if got := tree(t, outer); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

// TestTooManyEntries counts folders too, also those that are there only because
// something is in them.
func TestTooManyEntries(t *testing.T) {
	content := zipped(t, tarball(t, regular("a/b/c.yaml", ""), tar.Header{Typeflag: tar.TypeDir, Name: "a/d/"}, regular("e.yaml", "")))
	for room, want := range map[int]string{4: "more files and folders than an artifact may have (4)", 5: ""} {
		outer := t.TempDir()
		_, err := artifact.UnpackAtMost(bytes.NewReader(content), part(content), filepath.Join(outer, "out"), room)
		switch {
		case want == "" && err != nil:
			t.Errorf("room for %d: %v", room, err)
		case want != "" && (tidelock.KindOf(err) != tidelock.TooLarge || !strings.Contains(err.Error(), want) || len(tree(t, outer)) > 0):
			t.Errorf("room for %d: got %v and %v, want nothing, with %q", room, err, tree(t, outer), want)
		}
	}
}

// TestRefusedFolderStays is about a folder that was there before.
func TestRefusedFolderStays(t *testing.T) {
	dir := t.TempDir()
	if _, err := unpack(zipped(t, tarball(t, regular("a", "x"), regular("../b", "x"))), dir); tidelock.KindOf(err) != tidelock.Invalid {
		t.Errorf("got %v, want it refused", err)
	}
	if got := tree(t, dir); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// hugeHeader says that a file has a gigabyte, and gives none of it.
func hugeHeader(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err == nil {
		t.Fatal("the file is not short")
	}
	return b.Bytes()
}

// TestWrongLayer reads something else than the manifest named.
func TestWrongLayer(t *testing.T) {
	content := pack(t, files...).Content
	other := zipped(t, tarball(t, regular("a", "x")))
	cut := errors.New("connection reset")
	for name, c := range map[string]struct {
		r    io.Reader
		part tidelock.Part
		want string
	}{
		"other content":    {bytes.NewReader(other), part(content), "is not what the manifest names"},
		"one byte less":    {bytes.NewReader(content[:len(content)-1]), part(content), "is not what the manifest names"},
		"one byte more":    {bytes.NewReader(append(bytes.Clone(content), 0)), part(content), "is not what the manifest names"},
		"data without end": {io.MultiReader(bytes.NewReader(content), endless{}), part(content), "is not what the manifest names"},
		"a smaller size":   {bytes.NewReader(content), tidelock.Part{Digest: tidelock.DigestOf(content), Size: 10}, "is not what the manifest names"},
		"a negative size":  {bytes.NewReader(content), tidelock.Part{Digest: tidelock.DigestOf(content), Size: -1}, "larger than"},
		"a huge size":      {endless{}, tidelock.Part{Digest: tidelock.DigestOf(content), Size: 1 << 40}, "larger than"},
		"no digest":        {bytes.NewReader(content), tidelock.Part{Size: int64(len(content))}, "is not a digest"},
		"another hash":     {bytes.NewReader(content), tidelock.Part{Digest: "sha512:" + tidelock.Digest(strings.Repeat("a", 128)), Size: 1}, "only sha256"},
		"a lost line":      {io.MultiReader(bytes.NewReader(content[:100]), iotest.ErrReader(cut)), part(content), cut.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			outer := t.TempDir()
			_, err := artifact.Unpack(c.r, c.part, filepath.Join(outer, "out"))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it refused with %q", err, c.want)
			}
			if got := tree(t, outer); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// FuzzUnpack gives Unpack archives of all kinds. Whatever it takes lies below
// the folder, and can be packed and unpacked again.
func FuzzUnpack(f *testing.F) {
	f.Add(tarball(f, regular("a/b", "x"), tar.Header{Typeflag: tar.TypeDir, Name: "c/"}), true)
	f.Add(tarball(f, regular("../a", "x")), true)
	f.Add(tarball(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/"}, regular("a/b", "x")), true)
	f.Add([]byte("\x1f\x8b\x08"), false)
	f.Fuzz(func(t *testing.T, content []byte, compress bool) {
		if compress {
			content = zipped(t, content)
		}
		outer := t.TempDir()
		dir := filepath.Join(outer, "out")
		got, err := unpack(content, dir)
		if err != nil {
			if left := tree(t, outer); len(left) != 0 {
				t.Fatalf("left behind after %v: %v", err, left)
			}
			return
		}
		var again []artifact.File
		err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if !d.Type().IsRegular() {
				t.Fatalf("%s is a %s", name, d.Type())
			}
			rel, err := filepath.Rel(dir, name)
			if err != nil {
				return err
			}
			body, err := os.ReadFile(name)
			again = append(again, artifact.File{Path: filepath.ToSlash(rel), Content: body})
			return err
		})
		if err != nil || len(again) != got.Files {
			t.Fatalf("found %d files of %d: %v", len(again), got.Files, err)
		}
		if _, err := artifact.Pack(again); err != nil {
			t.Fatalf("pack again what was unpacked: %v", err)
		}
	})
}
