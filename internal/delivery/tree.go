package delivery

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/gitignore"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
	"tidelock.dev/internal/gitrepo"
)

// A Tree is the files of a commit, or of a working tree. Paths are relative to
// its root, which is ".", and have slashes. What is not there is of kind
// NotFound, a file over a limit of kind TooLarge.
type Tree interface {
	Entry(path string) (gitrepo.TreeEntry, error)
	Dir(path string) ([]gitrepo.TreeEntry, error)
	Content(e gitrepo.TreeEntry, limit int64) ([]byte, error)
}

const (
	maxFileSize = 20 << 20
	maxFiles    = 10_000
	maxSize     = 64 << 20 // of all files of one application
	maxNesting  = 64

	// maxSeen is how many entries of directories one application is made of,
	// ignored ones included: a few objects of Git can stand for a tree without
	// end.
	maxSeen = 100_000
	// Each name is held against all rules above it.
	maxRules     = 2 * maxIgnore
	maxRuleBytes = 64 << 10
)

// A problem is a finding that ends the packaging of an application.
type problem struct{ finding tidelock.Finding }

func (p problem) Error() string { return p.finding.String() }

func problemf(check Check, path string, format string, args ...any) error {
	return problem{tidelock.Finding{Check: string(check), Path: path, Message: shorten(fmt.Sprintf(format, args...))}}
}

// ignoreFile holds further rules, for the directory in which it lies and all
// below, as Flux reads it in a Git repository.
const ignoreFile = ".sourceignore"

// Never packaged: what belongs to Git, and the ignore rules themselves.
var alwaysIgnored = []string{".git", ".gitignore", ".gitmodules", ".gitattributes", ignoreFile}

// A collector reads the files of an application.
type collector struct {
	tree     Tree
	top      string // the application's path
	patterns []gitignore.Pattern
	rules    int // bytes of the patterns
	matcher  gitignore.Matcher
	files    []artifact.File // paths from the top
	size     int64
	seen     int // entries of directories
}

// collect reads all files of a directory that no rule ignores. Links and
// submodules lead to what is not in the tree, and are refused.
func collect(tree Tree, app Application) ([]artifact.File, error) {
	c := &collector{tree: tree, top: app.Path}
	for _, name := range alwaysIgnored {
		c.patterns = append(c.patterns, gitignore.ParsePattern(name, nil))
	}
	if err := c.add(ConfigPath, app.Ignore, nil); err != nil {
		return nil, err
	}
	e, err := tree.Entry(app.Path)
	if err != nil || e.Type != "tree" {
		return nil, notThere(app, e, err)
	}
	if err := c.walk(app.Path, nil); err != nil {
		return nil, err
	}
	if len(c.files) == 0 {
		return nil, problemf(checkBuild, app.Path, "no files are left to package")
	}
	return c.files, nil
}

func notThere(app Application, e gitrepo.TreeEntry, err error) error {
	switch {
	case err == nil && e.Mode == linkMode:
		return problemf(checkBuild, app.Path, "the application's path is a symbolic link")
	case err == nil:
		return problemf(checkBuild, app.Path, "the application's path is not a directory")
	case tidelock.KindOf(err) == tidelock.NotFound, tidelock.KindOf(err) == tidelock.Invalid:
		return problemf(checkBuild, app.Path, "the application's path is not in the repository")
	}
	return err
}

const (
	linkMode       = "120000"
	executableMode = "100755"
)

// add adds rules of a file that hold below a directory.
func (c *collector) add(file string, lines []string, domain []string) error {
	for _, line := range lines {
		line = strings.TrimRight(line, "\r")
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#") {
			c.patterns = append(c.patterns, gitignore.ParsePattern(line, domain))
			c.rules += len(line)
		}
	}
	c.matcher = gitignore.NewMatcher(c.patterns)
	if len(c.patterns) > maxRules || c.rules > maxRuleBytes {
		return problemf(checkBuild, file, "with these there are more than %d ignore rules, or %d KiB of them", maxRules, maxRuleBytes>>10)
	}
	return nil
}

func (c *collector) walk(dir string, segments []string) error {
	if len(segments) > maxNesting {
		return problemf(checkBuild, dir, "directories are nested deeper than %d", maxNesting)
	}
	entries, err := c.tree.Dir(dir)
	if err != nil {
		return err
	}
	if c.seen += len(entries); c.seen > maxSeen {
		return problemf(checkBuild, c.top, "there are more than %d files and directories, ignored ones included", maxSeen)
	}
	if i := slices.IndexFunc(entries, func(e gitrepo.TreeEntry) bool { return e.Name == ignoreFile && e.Type == "blob" && e.Mode != linkMode }); i >= 0 {
		content, err := c.content(entries[i])
		if err != nil {
			return err
		}
		lines := strings.Split(string(content), "\n")
		if len(lines) > maxIgnore {
			return problemf(checkBuild, entries[i].Path, "more than %d lines", maxIgnore)
		}
		patterns, rules, matcher := c.patterns, c.rules, c.matcher
		defer func() { c.patterns, c.rules, c.matcher = patterns, rules, matcher }()
		if err := c.add(entries[i].Path, lines, slices.Clone(segments)); err != nil {
			return err
		}
	}
	for _, e := range entries {
		below := append(slices.Clone(segments), e.Name)
		if c.matcher.Match(below, e.Type == "tree") {
			continue
		}
		switch {
		case e.Type == "tree":
			err = c.walk(e.Path, below)
		case e.Type == "commit":
			err = problemf(checkBuild, e.Path, "a submodule cannot be packaged: ignore it, or copy its files")
		case e.Mode == linkMode:
			err = problemf(checkBuild, e.Path, "a symbolic link cannot be packaged: ignore it, or copy the file")
		default:
			err = c.file(e, path.Join(below...))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) file(e gitrepo.TreeEntry, name string) error {
	if len(c.files) == maxFiles {
		return problemf(checkBuild, c.top, "more than %d files", maxFiles)
	}
	if err := artifact.ValidPath(name); err != nil {
		return problemf(checkBuild, e.Path, "%v", err)
	}
	content, err := c.content(e)
	if err != nil {
		return err
	}
	if c.size += int64(len(content)); c.size > maxSize {
		return problemf(checkBuild, c.top, "the files are larger than %d MiB", maxSize>>20)
	}
	c.files = append(c.files, artifact.File{Path: name, Executable: e.Mode == executableMode, Content: content})
	return nil
}

func (c *collector) content(e gitrepo.TreeEntry) ([]byte, error) {
	return content(c.tree, e)
}

func content(tree Tree, e gitrepo.TreeEntry) ([]byte, error) {
	content, err := tree.Content(e, maxFileSize)
	if tidelock.KindOf(err) == tidelock.TooLarge {
		return nil, problemf(checkBuild, e.Path, "the file is larger than %d MiB", maxFileSize>>20)
	}
	// An LFS pointer stands for a file that is not in the repository.
	if err == nil && bytes.HasPrefix(content, []byte("version https://git-lfs.github.com/spec/")) {
		return nil, problemf(checkBuild, e.Path, "the file is kept by Git LFS, and only its pointer is in the repository: ignore it")
	}
	return content, err
}

// A watcher is a Tree as a kustomization sees it, which remembers from which
// directories outside the application something was read.
type watcher struct {
	tree    Tree
	top     string
	watched map[string]bool
	read    int64
	seen    int // entries of the watched directories
}

// see watches a directory. What Inputs will have to read of all of them has to
// stay within bounds.
func (w *watcher) see(dir string) error {
	if w.top == "." || dir == w.top || strings.HasPrefix(dir, w.top+"/") || w.watched[dir] {
		return nil
	}
	w.watched[dir] = true
	w.seen++
	if entries, err := w.tree.Dir(dir); err == nil {
		w.seen += len(entries)
	} else if !absent(err) {
		return err
	}
	if w.seen > maxSeen {
		return problemf(checkBuild, w.top, "it looks into directories of more than %d files outside its path", maxSeen)
	}
	return nil
}

func (w *watcher) entry(name string) (gitrepo.TreeEntry, error) {
	if err := w.see(path.Dir(name)); err != nil {
		return gitrepo.TreeEntry{}, err
	}
	e, err := w.tree.Entry(name)
	switch {
	case tidelock.KindOf(err) == tidelock.Invalid: // such as one below .git, where nothing is
		return e, tidelock.Errorf(tidelock.NotFound, "%v", err)
	case err == nil && e.Mode == linkMode:
		return e, problemf(checkBuild, name, "symbolic links are not followed: name the file to which it leads")
	case err == nil && e.Type == "commit":
		return e, problemf(checkBuild, name, "what is in a submodule cannot be read")
	}
	return e, err
}

func (w *watcher) IsDir(name string) (bool, error) {
	e, err := w.entry(name)
	if err == nil && e.Type == "tree" {
		err = w.see(name)
	}
	return e.Type == "tree", asRefusal(err)
}

func (w *watcher) Read(name string) ([]byte, error) {
	e, err := w.entry(name)
	if err != nil {
		return nil, asRefusal(err)
	}
	if e.Type != "blob" {
		return nil, tidelock.Errorf(tidelock.NotFound, "%q is not a file", name)
	}
	text, err := content(w.tree, e)
	if err != nil {
		return nil, asRefusal(err)
	}
	if w.read += int64(len(text)); w.read > maxSize {
		return nil, tidelock.Errorf(tidelock.TooLarge, "it reads more than %d MiB", maxSize>>20)
	}
	return text, nil
}

func (w *watcher) List(dir string) ([]string, error) {
	if err := w.see(dir); err != nil {
		return nil, asRefusal(err)
	}
	entries, err := w.tree.Dir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name
	}
	return names, nil
}

// asRefusal gives a problem a kind that ends the rendering.
func asRefusal(err error) error {
	if p, ok := err.(problem); ok {
		return tidelock.Errorf(tidelock.Invalid, "%s", p)
	}
	return err
}
