package artifact

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"

	"tidelock.dev"
)

const (
	// maxRatio is how much larger than its compressed form a layer may become
	// once it is larger than freeRatio. Manifests shrink to a tenth, and the
	// most repetitive of them to a hundredth.
	maxRatio  = 250
	freeRatio = 1 << 20

	// maxOverhead bounds what a tar has beside the content of its files: the
	// headers, and the fill after each.
	maxOverhead = MaxFiles * 2048
)

// An Unpacked is what came out of a layer.
type Unpacked struct {
	Files int
	Size  int64 // of all files together
}

// Unpack writes the files of a layer, which is read from r, into a folder that
// must be empty or missing. The layer must have the size and digest that its
// manifest says. Whoever packed it is not trusted: it is refused, with kind
// Invalid or TooLarge, when it holds anything but files and folders below its
// root, a path twice or one that differs from another only in case, or more
// than MaxFiles and MaxSize allow. The folder gets all files or none.
func Unpack(r io.Reader, layer tidelock.Part, dir string) (Unpacked, error) {
	return unpack(r, layer, dir, MaxFiles)
}

func unpack(r io.Reader, layer tidelock.Part, dir string, entries int) (_ Unpacked, err error) {
	stage, err := newStage(dir)
	if err != nil {
		return Unpacked{}, err
	}
	defer func() { err = errors.Join(err, stage.close()) }()
	x := &extraction{root: stage.root, seen: map[string]entry{}, room: entries}
	if err := x.read(r, layer); err != nil {
		return Unpacked{}, err
	}
	return x.Unpacked, stage.publish()
}

// A stage is where files wait until all of them are there.
type stage struct {
	temp, dir string
	into      bool // the folder exists, and holds the temporary one
	root      *os.Root
}

func newStage(dir string) (*stage, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the folder %q: %w", dir, err)
	}
	s := &stage{dir: dir}
	beside := filepath.Dir(dir)
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("look into the folder: %w", err)
	case len(entries) > 0:
		return nil, tidelock.Errorf(tidelock.Conflict, "the folder %s is not empty; give an empty one, or one that does not exist yet", dir)
	default:
		// It may be the working directory, or a mount: it stays, and what is
		// made inside is moved up.
		s.into, beside = true, dir
	}
	if err := os.MkdirAll(beside, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder: %w", err)
	}
	if s.temp, err = os.MkdirTemp(beside, ".tidelock-*"); err != nil {
		return nil, fmt.Errorf("make a folder to unpack into: %w", err)
	}
	if s.root, err = os.OpenRoot(s.temp); err != nil {
		return nil, errors.Join(fmt.Errorf("open a folder to unpack into: %w", err), os.RemoveAll(s.temp))
	}
	return s, nil
}

func (s *stage) close() error {
	err := errors.Join(s.root.Close(), os.RemoveAll(s.temp))
	if err != nil {
		return fmt.Errorf("remove what was unpacked on the way: %w", err)
	}
	return nil
}

func (s *stage) publish() error {
	if !s.into {
		if err := os.Chmod(s.temp, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", s.dir, err)
		}
		if err := os.Rename(s.temp, s.dir); err != nil {
			return fmt.Errorf("make %s: %w", s.dir, err)
		}
		return nil
	}
	entries, err := os.ReadDir(s.temp)
	if err != nil {
		return fmt.Errorf("fill %s: %w", s.dir, err)
	}
	for i, e := range entries {
		if err := os.Rename(filepath.Join(s.temp, e.Name()), filepath.Join(s.dir, e.Name())); err != nil {
			for _, moved := range entries[:i] {
				err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, moved.Name())))
			}
			return fmt.Errorf("fill %s: %w", s.dir, err)
		}
	}
	return nil
}

// An extraction reads one layer.
type extraction struct {
	Unpacked
	root *os.Root
	seen map[string]entry // by path without case
	room int              // for further files and folders
}

type entry struct {
	path string
	file bool
}

func (x *extraction) read(r io.Reader, layer tidelock.Part) error {
	if err := tidelock.ValidDigest(layer.Digest); err != nil {
		return err
	}
	if !strings.HasPrefix(string(layer.Digest), "sha256:") {
		return tidelock.Errorf(tidelock.Invalid, "the layer is named by %s; only sha256 is known here", layer.Digest)
	}
	if layer.Size < 0 || layer.Size > MaxSize+maxOverhead {
		return tidelock.Errorf(tidelock.TooLarge, "a layer of %d bytes is larger than an artifact may be (%d MiB)", layer.Size, MaxSize>>20)
	}
	sum := sha256.New()
	packed := &counter{from: io.TeeReader(io.LimitReader(r, layer.Size+1), sum)}
	failed := x.extract(packed)
	// Only what is named by the digest can say what is wrong with it: a layer
	// that was cut on the way is no bad layer.
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return fmt.Errorf("read the layer %s: %w", layer.Digest, err)
	}
	got := tidelock.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))
	if packed.n != layer.Size || got != layer.Digest {
		return tidelock.Errorf(tidelock.Invalid, "the layer is not what the manifest names: %d bytes of %s instead of %d of %s", packed.n, got, layer.Size, layer.Digest)
	}
	return failed
}

func (x *extraction) extract(packed *counter) error {
	unzipped, err := gzip.NewReader(packed)
	if err != nil {
		return tidelock.Errorf(tidelock.Invalid, "the layer is not compressed with gzip")
	}
	content := &bounded{from: unzipped, packed: packed}
	archive := tar.NewReader(content)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return x.end(content)
		}
		if err != nil {
			return broken(err)
		}
		if err := x.take(header, archive); err != nil {
			return err
		}
	}
}

// end refuses what comes after the archive: other readers may go on there.
func (x *extraction) end(content io.Reader) error {
	block := make([]byte, 32<<10)
	for {
		n, err := content.Read(block)
		if len(bytes.Trim(block[:n], "\x00")) > 0 {
			return tidelock.Errorf(tidelock.Invalid, "the layer has more after the end of its archive")
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return broken(err)
		}
	}
	if x.Files == 0 {
		return tidelock.Errorf(tidelock.Invalid, "there is no file in the layer")
	}
	return nil
}

// broken is what is wrong with an archive that cannot be read.
func broken(err error) error {
	if tidelock.KindOf(err) == tidelock.TooLarge {
		return err
	}
	return tidelock.Errorf(tidelock.Invalid, "the layer is not a tar archive compressed with gzip, or it is broken: %v", err)
}

func (x *extraction) take(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader: // "git archive" notes the commit in one
		return nil
	case tar.TypeReg, tar.TypeDir:
	case tar.TypeSymlink, tar.TypeLink:
		return tidelock.Errorf(tidelock.Invalid, "%.200q is a link to %.200q; an artifact holds files and folders alone", h.Name, h.Linkname)
	default:
		return tidelock.Errorf(tidelock.Invalid, "%.200q is a device or something like it; an artifact holds files and folders alone", h.Name)
	}
	name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
	if h.Typeflag == tar.TypeDir && (name == "" || name == ".") {
		return nil
	}
	if err := x.note(name, h.Typeflag == tar.TypeReg); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return x.folder(name)
	}
	if h.Size < 0 || h.Size > MaxSize-x.Size {
		return tidelock.Errorf(tidelock.TooLarge, "the files are larger than an artifact may be (%d MiB)", MaxSize>>20)
	}
	if err := x.folder(path.Dir(name)); err != nil {
		return err
	}
	x.Files++
	x.Size += h.Size
	return x.file(name, h, content)
}

// note refuses a path that leads outside, that was there before, or that would
// be another one where names have no case.
func (x *extraction) note(name string, file bool) error {
	if err := ValidPath(name); err != nil {
		return err
	}
	for p, leaf := name, true; p != "."; p, leaf = path.Dir(p), false {
		if strings.EqualFold(path.Base(p), ".git") {
			return tidelock.Errorf(tidelock.Invalid, "path %.200q would be taken for a repository's own by git", name)
		}
		folded := strings.ToLower(strings.ToUpper(p))
		before, ok := x.seen[folded]
		switch {
		case !ok:
			if x.room--; x.room < 0 {
				return tidelock.Errorf(tidelock.TooLarge, "there are more files and folders than an artifact may have (%d)", len(x.seen))
			}
			x.seen[folded] = entry{p, leaf && file}
		case before.path != p:
			return tidelock.Errorf(tidelock.Invalid, "paths %.200q and %.200q differ only in case", before.path, p)
		case before.file && leaf && file:
			return tidelock.Errorf(tidelock.Invalid, "path %.200q stands twice", p)
		case before.file || leaf && file:
			return tidelock.Errorf(tidelock.Invalid, "path %.200q is a file and a directory", p)
		}
	}
	return nil
}

func (x *extraction) folder(name string) error {
	if name == "." {
		return nil
	}
	if err := x.root.MkdirAll(name, 0o755); err != nil {
		return fmt.Errorf("unpack %q: %w", name, err)
	}
	return nil
}

func (x *extraction) file(name string, h *tar.Header, content io.Reader) error {
	mode := fs.FileMode(0o644)
	if h.Mode&0o111 != 0 {
		mode = 0o755
	}
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("unpack %q: %w", name, err)
	}
	read := &source{from: content}
	_, err = io.Copy(f, read)
	if read.err != nil {
		f.Close()
		return broken(read.err)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("unpack %q: %w", name, err)
	}
	return nil
}

// A source tells a failed read from a failed write of a copy.
type source struct {
	from io.Reader
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

type counter struct {
	from io.Reader
	n    int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n += int64(n)
	return n, err
}

// bounded is what comes out of the compression, as long as it is not too much.
type bounded struct {
	from   io.Reader
	packed *counter
	n      int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	b.n += int64(n)
	switch {
	case b.n > MaxSize+maxOverhead:
		return 0, tidelock.Errorf(tidelock.TooLarge, "the layer is larger than an artifact may be (%d MiB)", MaxSize>>20)
	case b.n > freeRatio && b.n > maxRatio*b.packed.n:
		return 0, tidelock.Errorf(tidelock.TooLarge, "the layer becomes more than %d times as large when it is unpacked", maxRatio)
	}
	return n, err
}
