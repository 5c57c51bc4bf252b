package artifact

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"

	"tidelock.dev"
)

const (
	// MaxFiles and MaxSize bound what is packed into one layer. Flux refuses
	// to unpack more than 100 MiB.
	MaxFiles = 20_000
	MaxSize  = 100 << 20 // bytes of all files, before compression

	maxPath  = 1024
	maxDepth = 64
)

// A File is one regular file of an artifact.
type File struct {
	Path       string // relative, with slashes
	Executable bool
	Content    []byte
}

// A Layer is a packed set of files.
type Layer struct {
	Content []byte          // tar+gzip
	Digest  tidelock.Digest // of Content
	DiffID  tidelock.Digest // of the tar inside
}

// Pack packs files into a layer. The same files give the same bytes, in
// whatever order they come: entries are sorted, have no owner and no time, and
// of a mode only whether the file can be run is kept. Directories are not
// entries of their own. Pack refuses, with kind Invalid, a path that leads
// outside or stands twice, and with TooLarge more than MaxFiles or MaxSize.
func Pack(files []File) (Layer, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	if err := check(files); err != nil {
		return Layer{}, err
	}
	var content bytes.Buffer
	packed, err := newGzip(&content)
	if err != nil {
		return Layer{}, err
	}
	diff := sha256.New()
	archive := tar.NewWriter(io.MultiWriter(packed, diff))
	for _, f := range files {
		header := &tar.Header{
			Typeflag: tar.TypeReg,
			Name:     f.Path,
			Size:     int64(len(f.Content)),
			Mode:     0o644,
			ModTime:  time.Unix(0, 0),
		}
		if f.Executable {
			header.Mode = 0o755
		}
		if err := archive.WriteHeader(header); err != nil {
			return Layer{}, fmt.Errorf("pack %q: %w", f.Path, err)
		}
		if _, err := archive.Write(f.Content); err != nil {
			return Layer{}, fmt.Errorf("pack %q: %w", f.Path, err)
		}
	}
	if err := archive.Close(); err != nil {
		return Layer{}, fmt.Errorf("pack files: %w", err)
	}
	if err := packed.Close(); err != nil {
		return Layer{}, fmt.Errorf("compress files: %w", err)
	}
	return Layer{
		Content: content.Bytes(),
		Digest:  tidelock.DigestOf(content.Bytes()),
		DiffID:  tidelock.Digest("sha256:" + hex.EncodeToString(diff.Sum(nil))),
	}, nil
}

// newGzip compresses by a library whose version go.mod pins, and not by that
// of the Go release, which would give other bytes after an upgrade of Go. The
// header has no name and no time.
func newGzip(out io.Writer) (*gzip.Writer, error) {
	const level = 6
	packed, err := gzip.NewWriterLevel(out, level)
	if err != nil {
		return nil, fmt.Errorf("compress files: %w", err)
	}
	const unknownSystem = 255
	packed.OS, packed.ModTime = unknownSystem, time.Unix(0, 0)
	return packed, nil
}

// check refuses sorted files that cannot be packed, or could be unpacked only
// by guessing what was meant.
func check(files []File) error {
	if len(files) == 0 {
		return tidelock.Errorf(tidelock.Invalid, "there are no files to package")
	}
	if len(files) > MaxFiles {
		return tidelock.Errorf(tidelock.TooLarge, "%d files are more than an artifact may have (%d)", len(files), MaxFiles)
	}
	size := 0
	paths := make(map[string]bool, len(files))
	for _, f := range files {
		if err := ValidPath(f.Path); err != nil {
			return err
		}
		if paths[f.Path] {
			return tidelock.Errorf(tidelock.Invalid, "path %q stands twice", f.Path)
		}
		paths[f.Path] = true
		if size += len(f.Content); size > MaxSize {
			return tidelock.Errorf(tidelock.TooLarge, "the files are larger than an artifact may be (%d MiB)", MaxSize>>20)
		}
	}
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if paths[dir] {
				return tidelock.Errorf(tidelock.Invalid, "path %q is a file and a directory", dir)
			}
		}
	}
	return nil
}

// ValidPath refuses, with kind Invalid, what is not the clean, relative path
// of a file in an artifact.
func ValidPath(p string) error {
	switch {
	case p == "", p == ".", path.Clean(p) != p, path.IsAbs(p), p == "..", strings.HasPrefix(p, "../"):
		return tidelock.Errorf(tidelock.Invalid, "%.200q is not a clean relative path", p)
	case strings.ContainsAny(p, "\x00\\"), !utf8.ValidString(p):
		return tidelock.Errorf(tidelock.Invalid, "path %.200q has a backslash, or is not text", p)
	case len(p) > maxPath:
		return tidelock.Errorf(tidelock.Invalid, "path %.200q is longer than %d bytes", p, maxPath)
	case strings.Count(p, "/") >= maxDepth:
		return tidelock.Errorf(tidelock.Invalid, "path %.200q is deeper than %d directories", p, maxDepth)
	}
	return nil
}
