package gitrepo

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
)

// A ChangeKind is what a Change does to a file.
type ChangeKind string

const (
	CreateFile ChangeKind = "create"
	UpdateFile ChangeKind = "update"
	DeleteFile ChangeKind = "delete"
	MoveFile   ChangeKind = "move"
	ChmodFile  ChangeKind = "chmod"
)

// A Change is one step of a commit. Steps are done in their order, so that a
// later one finds what an earlier one left.
type Change struct {
	Kind ChangeKind
	Path string
	From string // of a move: where the file was

	// Content is what the file holds after a create, an update or, unless nil,
	// a move.
	Content []byte

	// Executable makes the file executable or not; nil leaves it as it is.
	Executable *bool

	// LastCommit, unless empty, has to be the newest commit that changed the
	// file: otherwise somebody else changed it meanwhile.
	LastCommit tidelock.CommitID
}

// A NewCommit is what is said of a commit to make.
type NewCommit struct {
	Parent    tidelock.CommitID // "" for the first commit of a history
	Message   string
	Author    Signature
	Committer Signature
	Changes   []Change
}

// A Draft is a commit, or an annotated tag, that no ref names yet. Nothing of
// it is in the repository before Move.
type Draft struct {
	ID   tidelock.CommitID
	pack pack
}

// What a commit made here may touch; beyond, it has to be pushed by git.
const (
	maxTouched = 1_000_000 // files and directories in the directories on its way
	maxChecked = 100       // changes with a LastCommit: each takes a walk through history
)

// Modes of entries in trees.
const (
	modeFile       = "100644"
	modeExecutable = "100755"
	modeLink       = "120000"
	modeSubmodule  = "160000"
	modeTree       = "40000"
)

// Draft prepares a commit without touching the repository. It reads only the
// directories on the way to the changed files, so that the size of the
// repository does not matter. A change that cannot be made is of kind Invalid.
//
// Symbolic links are files like others here: none is ever followed.
func (r *Repo) Draft(ctx context.Context, n NewCommit) (Draft, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var d Draft
	checked := 0
	for _, c := range n.Changes {
		if c.LastCommit == "" || n.Parent == "" {
			continue
		}
		if checked++; checked > maxChecked {
			return d, tidelock.Errorf(tidelock.TooLarge, "more than %d actions have a last_commit_id", maxChecked)
		}
		newest, err := r.lastChange(ctx, n.Parent, c)
		if err != nil {
			return d, err
		}
		if newest != c.LastCommit {
			return d, tidelock.Errorf(tidelock.Invalid, "The file has changed since you started editing it: %s", c.Path)
		}
	}
	err := r.withObjects(ctx, func(from *objects) error {
		root := &folder{entries: map[string]*entry{}}
		if n.Parent != "" {
			tree, err := from.treeOf(n.Parent)
			if err != nil {
				return err
			}
			root = &folder{id: tree}
		}
		e := editor{from: from, pack: &d.pack, root: root}
		for _, c := range n.Changes {
			if err := e.apply(c); err != nil {
				return err
			}
		}
		tree, err := e.write(root)
		if err != nil {
			return err
		}
		d.ID, err = d.pack.add(commitObject, encodeCommit(tree, n))
		return err
	})
	return d, err
}

// lastChange finds the newest commit that changed the file of a change.
func (r *Repo) lastChange(ctx context.Context, from tidelock.CommitID, c Change) (tidelock.CommitID, error) {
	path := c.Path
	if c.Kind == MoveFile {
		path = c.From
	}
	if err := validPath(path); err != nil {
		return "", err
	}
	out, err := r.disk.query(ctx, r.disk.command(r, "rev-list", "--max-count=1", string(from), "--", path))
	return tidelock.CommitID(strings.TrimSpace(string(out))), err
}

// treeOf reads which tree a commit has.
func (o *objects) treeOf(commit tidelock.CommitID) (tidelock.CommitID, error) {
	kind, content, err := o.get(commit)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(content), "\n")
	tree, ok := strings.CutPrefix(line, "tree ")
	if kind != "commit" || !ok {
		return "", tidelock.Errorf(tidelock.Invalid, "%s is not a commit", commit)
	}
	return tidelock.CommitID(tree), nil
}

// A folder is a directory being edited. One that nothing looked into has no
// entries yet, only an id.
type folder struct {
	id      tidelock.CommitID
	entries map[string]*entry // nil until read
	changed bool
}

type entry struct {
	mode string
	id   tidelock.CommitID
	dir  *folder // of a directory
}

// An editor applies changes to a tree.
type editor struct {
	from    *objects
	pack    *pack
	root    *folder
	touched int
}

// touch counts what is held in memory.
func (e *editor) touch(entries int) error {
	if e.touched += entries; e.touched > maxTouched {
		return tidelock.Errorf(tidelock.TooLarge, "the commit touches directories with more than %d entries; push it by git", maxTouched)
	}
	return nil
}

func (e *editor) apply(c Change) error {
	switch c.Kind {
	case CreateFile:
		id, err := e.pack.add(blobObject, c.Content)
		if err != nil {
			return err
		}
		made := &entry{mode: modeFile, id: id}
		if c.Executable != nil && *c.Executable {
			made.mode = modeExecutable
		}
		return e.insert(c.Path, made)
	case UpdateFile:
		file, _, err := e.file(c.Path)
		if err != nil {
			return err
		}
		if file.id, err = e.pack.add(blobObject, c.Content); err != nil {
			return err
		}
		return chmod(file, c)
	case DeleteFile:
		_, err := e.remove(c.Path)
		return err
	case MoveFile:
		moved, err := e.remove(c.From)
		if err != nil {
			return err
		}
		if c.Content != nil {
			if moved.id, err = e.pack.add(blobObject, c.Content); err != nil {
				return err
			}
		}
		if err := chmod(moved, c); err != nil {
			return err
		}
		return e.insert(c.Path, moved)
	case ChmodFile:
		file, _, err := e.file(c.Path)
		if err != nil {
			return err
		}
		return chmod(file, c)
	}
	return tidelock.Errorf(tidelock.Invalid, "Unknown action '%.100s'", c.Kind)
}

func chmod(file *entry, c Change) error {
	switch {
	case c.Executable == nil:
	case !strings.HasPrefix(file.mode, "100"):
		return tidelock.Errorf(tidelock.Invalid, "%s is a symbolic link: it cannot be executable", c.Path)
	case *c.Executable:
		file.mode = modeExecutable
	default:
		file.mode = modeFile
	}
	return nil
}

// file finds the entry of an existing file, for writing, and the folder it is
// in; a submodule is no file.
func (e *editor) file(path string) (*entry, *folder, error) {
	if err := validPath(path); err != nil {
		return nil, nil, err
	}
	way, err := e.walk(path, false)
	if err != nil {
		return nil, nil, err
	}
	if way == nil {
		return nil, nil, errNoFile()
	}
	in := way[len(way)-1]
	file := in.entries[base(path)]
	if file == nil || file.dir != nil || file.mode == modeSubmodule {
		return nil, nil, errNoFile()
	}
	for _, dir := range way {
		dir.changed = true
	}
	return file, in, nil
}

func errNoFile() error {
	return tidelock.Errorf(tidelock.Invalid, "A file with this name doesn't exist")
}

// remove takes a file out, and leaves directories that become empty to write.
func (e *editor) remove(path string) (*entry, error) {
	file, in, err := e.file(path)
	if err != nil {
		return nil, err
	}
	delete(in.entries, base(path))
	return file, nil
}

func (e *editor) insert(path string, made *entry) error {
	if err := newPath(path); err != nil {
		return err
	}
	way, err := e.walk(path, true)
	if err != nil {
		return err
	}
	in := way[len(way)-1]
	if there := in.entries[base(path)]; there != nil {
		if there.dir == nil {
			return tidelock.Errorf(tidelock.Invalid, "A file with this name already exists")
		}
		empty, err := e.empty(there.dir)
		if err != nil {
			return err
		}
		if !empty {
			return tidelock.Errorf(tidelock.Invalid, "A directory with this name already exists")
		}
	}
	in.entries[base(path)] = made
	for _, dir := range way {
		dir.changed = true
	}
	return nil
}

// walk reads the folders from the root to the one that holds path. One that
// is missing is made, or else there is no way and no error.
func (e *editor) walk(path string, mayMake bool) ([]*folder, error) {
	way := []*folder{e.root}
	if err := e.read(e.root); err != nil {
		return nil, err
	}
	names := strings.Split(path, "/")
	for _, name := range names[:len(names)-1] {
		at := way[len(way)-1]
		next := at.entries[name]
		switch {
		case next == nil && mayMake:
			if err := e.touch(10); err != nil { // a directory weighs more than a file
				return nil, err
			}
			next = &entry{mode: modeTree, dir: &folder{entries: map[string]*entry{}}}
			at.entries[name] = next
		case next == nil:
			return nil, nil
		case next.dir == nil && mayMake:
			return nil, tidelock.Errorf(tidelock.Invalid, "%.200q leads through %q, which is not a directory", path, name)
		case next.dir == nil:
			return nil, nil
		}
		if err := e.read(next.dir); err != nil {
			return nil, err
		}
		way = append(way, next.dir)
	}
	return way, nil
}

// empty reports whether a folder holds no file: what its files were taken out
// of is not written.
func (e *editor) empty(dir *folder) (bool, error) {
	if !dir.changed && dir.id != "" {
		return false, nil
	}
	for _, sub := range dir.entries {
		if sub.dir == nil {
			return false, nil
		}
		if empty, err := e.empty(sub.dir); err != nil || !empty {
			return false, err
		}
	}
	return true, nil
}

// read fills a folder that was not looked into before.
func (e *editor) read(dir *folder) error {
	if dir.entries != nil {
		return nil
	}
	kind, content, err := e.from.get(dir.id)
	if err != nil {
		return err
	}
	if kind != "tree" {
		return fmt.Errorf("read tree %s: it is a %s", dir.id, kind)
	}
	dir.entries, err = decodeTree(content)
	if err != nil {
		return fmt.Errorf("read tree %s: %w", dir.id, err)
	}
	return e.touch(len(dir.entries))
}

// write puts what changed into the pack, deepest first, leaves out directories
// without files, and returns the name of the tree.
func (e *editor) write(dir *folder) (tidelock.CommitID, error) {
	if !dir.changed && dir.id != "" {
		return dir.id, nil
	}
	for name, sub := range dir.entries {
		if sub.dir == nil {
			continue
		}
		empty, err := e.empty(sub.dir)
		if err != nil {
			return "", err
		}
		if empty {
			delete(dir.entries, name)
			continue
		}
		if sub.id, err = e.write(sub.dir); err != nil {
			return "", err
		}
	}
	return e.pack.add(treeObject, encodeTree(dir.entries))
}

const rawName = 20 // bytes of an object's name in a tree

func decodeTree(content []byte) (map[string]*entry, error) {
	entries := map[string]*entry{}
	for len(content) > 0 {
		head, rest, ok := bytes.Cut(content, []byte{0})
		mode, name, hasName := strings.Cut(string(head), " ")
		if !ok || !hasName || len(rest) < rawName {
			return nil, fmt.Errorf("%q is no entry", head)
		}
		made := &entry{mode: mode, id: tidelock.CommitID(hex.EncodeToString(rest[:rawName]))}
		if strings.TrimLeft(mode, "0") == modeTree {
			made.mode, made.dir = modeTree, &folder{id: made.id}
		}
		entries[name], content = made, rest[rawName:]
	}
	return entries, nil
}

// encodeTree orders entries as git does: a directory as if its name ended
// with a slash.
func encodeTree(entries map[string]*entry) []byte {
	type named struct {
		key, name string
		*entry
	}
	ordered := make([]named, 0, len(entries))
	for name, e := range entries {
		key := name
		if e.dir != nil {
			key += "/"
		}
		ordered = append(ordered, named{key, name, e})
	}
	slices.SortFunc(ordered, func(a, b named) int { return strings.Compare(a.key, b.key) })
	var b []byte
	for _, e := range ordered {
		b = append(b, e.mode+" "+e.name+"\x00"...)
		b, _ = hex.AppendDecode(b, []byte(e.id)) // ids come from git or from a hash
	}
	return b
}

func encodeCommit(tree tidelock.CommitID, n NewCommit) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "tree %s\n", tree)
	if n.Parent != "" {
		fmt.Fprintf(&b, "parent %s\n", n.Parent)
	}
	fmt.Fprintf(&b, "author %s\ncommitter %s\n\n", n.Author.encode(), n.Committer.encode())
	b.WriteString(n.Message)
	return b.Bytes()
}

// DraftTag prepares an annotated tag of an object without touching the
// repository.
func (r *Repo) DraftTag(name string, target tidelock.CommitID, tagger Signature, message string) (Draft, error) {
	var d Draft
	if !isObjectName(target) {
		return d, errNoCommit(string(target))
	}
	if err := tidelock.ValidRef(tidelock.TagRef(name)); err != nil {
		return d, err
	}
	if !strings.HasSuffix(message, "\n") {
		message += "\n"
	}
	text := fmt.Sprintf("object %s\ntype commit\ntag %s\ntagger %s\n\n%s", target, name, tagger.encode(), message)
	id, err := d.pack.add(tagObject, []byte(text))
	d.ID = id
	return d, err
}

// encode writes a signature as git does, without what would end a field of it.
func (s Signature) encode() string {
	clean := func(text, otherwise string) string {
		text = strings.Map(func(r rune) rune {
			if r < ' ' || r == '<' || r == '>' || r == 0x7f {
				return -1
			}
			return r
		}, text)
		if text = strings.TrimSpace(text); text == "" {
			return otherwise
		}
		return text
	}
	_, offset := s.When.Zone()
	sign := '+'
	if offset < 0 {
		sign, offset = '-', -offset
	}
	minutes := offset / int(time.Minute/time.Second)
	return fmt.Sprintf("%s <%s> %d %c%02d%02d", clean(s.Name, "unknown"), clean(s.Email, "unknown"), s.When.Unix(), sign, minutes/60, minutes%60)
}

// base is the last segment of a valid path.
func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }
