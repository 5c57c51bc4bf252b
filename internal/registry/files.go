package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"

	"tidelock.dev"
)

// fileName is what files of content are called below a disk's root.
var fileName = regexp.MustCompile(`^(blobs/(sha256/[0-9a-f]{2}/[0-9a-f]{64}|sha512/[0-9a-f]{2}/[0-9a-f]{128})/data|` +
	`repositories/p[1-9][0-9]{0,18}(/[a-z0-9]+([._-]+[a-z0-9]+)*){0,100}/(_layers|_manifests/revisions)/(sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})/link)$`)

// IsFile reports whether a slash-separated name is one that Files tells of.
func IsFile(name string) bool { return len(name) < 1000 && fileName.MatchString(name) }

// FilePath is where a file of content lies in a folder that Open was given.
func FilePath(dir, name string) string { return filepath.Join(dir, root, filepath.FromSlash(name)) }

// FilesOf names the files that make a blob or a manifest one of an image's: the
// link to its content, and the content.
func FilesOf(name Name, digest tidelock.Digest, manifest bool) (link, data string) {
	link = blobLink(name, digest)
	if manifest {
		link = manifestLink(name, digest)
	}
	return strings.TrimPrefix(link, root+"/"), strings.TrimPrefix(blobPath(digest), root+"/")
}

// Files calls f for every file of content in a folder that Open was given, for
// a copy that is made while others use it. A file may be gone when f looks.
func Files(ctx context.Context, dir string, f func(name string) error) error {
	top := filepath.Join(dir, root)
	err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case entry.IsDir():
			return nil
		}
		name, err := filepath.Rel(top, path)
		if err != nil || !IsFile(filepath.ToSlash(name)) {
			return err
		}
		return f(filepath.ToSlash(name))
	})
	if err != nil {
		return fmt.Errorf("list the content of images: %w", err)
	}
	return nil
}
