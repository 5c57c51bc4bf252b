package artifact

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/gitignore"

	"tidelock.dev"
)

// neverPacked is what belongs to Git, and the ignore rules themselves.
var neverPacked = []string{".git", ".gitignore", ".gitmodules", ".gitattributes", ignoreFile}

// ignoreFile holds rules as of .gitignore for its folder and all below, as Flux
// reads it in a Git repository.
const ignoreFile = ".sourceignore"

const maxIgnoreFile = 64 << 10

// Collect reads the files of a folder that no rule ignores; a path to a file
// is that file alone. The rules are lines as of .gitignore. Links lead to what
// is not in the folder, and are refused.
func Collect(dir string, ignore []string) ([]File, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("read what to package: %w", err)
	}
	if info.Mode().IsRegular() {
		f, err := readFile(dir, filepath.Base(dir), info)
		return []File{f}, err
	}
	if !info.IsDir() {
		return nil, tidelock.Errorf(tidelock.Invalid, "%s is neither a file nor a folder", dir)
	}
	c := collector{top: dir}
	c.add(neverPacked, nil)
	c.add(ignore, nil)
	if err := c.walk("."); err != nil {
		return nil, err
	}
	if len(c.files) == 0 {
		return nil, tidelock.Errorf(tidelock.Invalid, "there are no files to package in %s", dir)
	}
	return c.files, nil
}

type collector struct {
	top      string
	patterns []gitignore.Pattern
	files    []File
	size     int64
}

// add adds rules that hold below a folder.
func (c *collector) add(lines, below []string) {
	for _, line := range lines {
		line = strings.TrimRight(line, "\r")
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#") {
			c.patterns = append(c.patterns, gitignore.ParsePattern(line, below))
		}
	}
}

func (c *collector) walk(dir string) error {
	var segments []string
	if dir != "." {
		segments = strings.Split(dir, "/")
	}
	before := len(c.patterns)
	defer func() { c.patterns = c.patterns[:before] }() // they hold below dir alone
	rules, err := os.ReadFile(c.full(path.Join(dir, ignoreFile)))
	switch {
	case err == nil && len(rules) > maxIgnoreFile:
		return tidelock.Errorf(tidelock.TooLarge, "%s has more than %d KiB", path.Join(dir, ignoreFile), maxIgnoreFile>>10)
	case err == nil:
		c.add(strings.Split(string(rules), "\n"), segments)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the ignore rules: %w", err)
	}
	entries, err := os.ReadDir(c.full(dir))
	if err != nil {
		return fmt.Errorf("read what to package: %w", err)
	}
	matcher := gitignore.NewMatcher(c.patterns)
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		switch {
		case matcher.Match(strings.Split(name, "/"), e.IsDir()):
		case e.IsDir():
			err = c.walk(name)
		default:
			err = c.take(name, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) full(name string) string { return filepath.Join(c.top, filepath.FromSlash(name)) }

func (c *collector) take(name string, e fs.DirEntry) error {
	if !e.Type().IsRegular() {
		return tidelock.Errorf(tidelock.Invalid, "%s is a link or a device, and cannot be packaged: ignore it, or copy the file", name)
	}
	info, err := e.Info()
	if err != nil {
		return fmt.Errorf("read what to package: %w", err)
	}
	if c.size += info.Size(); c.size > MaxSize {
		return tidelock.Errorf(tidelock.TooLarge, "the files are larger than an artifact may be (%d MiB)", MaxSize>>20)
	}
	if len(c.files) == MaxFiles {
		return tidelock.Errorf(tidelock.TooLarge, "there are more files than an artifact may have (%d)", MaxFiles)
	}
	f, err := readFile(c.full(name), name, info)
	c.files = append(c.files, f)
	return err
}

func readFile(full, name string, info fs.FileInfo) (File, error) {
	content, err := os.ReadFile(full)
	if err != nil {
		return File{}, fmt.Errorf("read what to package: %w", err)
	}
	return File{Path: name, Executable: info.Mode()&0o111 != 0, Content: content}, nil
}
