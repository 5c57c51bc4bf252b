package gitrepo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"tidelock.dev"
)

// A Ref is where a ref points. Commit is Object with annotated tags peeled;
// it is empty for a tag of something that is not a commit.
type Ref struct {
	Name   tidelock.RefName
	Object tidelock.CommitID
	Commit tidelock.CommitID
}

// Refs lists all refs, peeled, in order of name.
func (r *Repo) Refs(ctx context.Context) ([]Ref, error) {
	refs, err := r.Tips(ctx)
	if err != nil {
		return nil, err
	}
	// git lets a branch name nothing but a commit; what others name only
	// git can tell.
	if !slices.ContainsFunc(refs, func(ref Ref) bool { return !isBranch(ref.Name) }) {
		return peelBranches(refs), nil
	}
	return r.forEachRef(ctx, nil)
}

// ReadRefs reads the named refs fresh from the disk, peeled, in order of
// name, and leaves out those that do not exist. Branches cost no process.
func (r *Repo) ReadRefs(ctx context.Context, names ...tidelock.RefName) ([]Ref, error) {
	for _, name := range names {
		if err := tidelock.ValidRef(name); err != nil {
			return nil, err
		}
	}
	if slices.ContainsFunc(names, func(name tidelock.RefName) bool { return !isBranch(name) }) {
		return r.forEachRef(ctx, names)
	}
	refs, err := r.readTips(names)
	if errors.Is(err, errUnusualRef) {
		return r.forEachRef(ctx, names)
	}
	return peelBranches(refs), err
}

// Tips lists all refs in order of name, without looking at the objects that
// they name: Commit is left empty. It usually costs no process.
func (r *Repo) Tips(ctx context.Context) ([]Ref, error) {
	refs, err := r.allTips()
	if errors.Is(err, errUnusualRef) {
		refs, err = r.forEachRef(ctx, nil)
		for i := range refs {
			refs[i].Commit = ""
		}
	}
	return refs, err
}

func isBranch(name tidelock.RefName) bool {
	_, ok := name.Branch()
	return ok
}

func peelBranches(refs []Ref) []Ref {
	for i := range refs {
		refs[i].Commit = refs[i].Object
	}
	return refs
}

// forEachRef asks git for the named refs, or for all.
func (r *Repo) forEachRef(ctx context.Context, names []tidelock.RefName) ([]Ref, error) {
	if err := r.exists(); err != nil {
		return nil, err
	}
	args := []string{"for-each-ref",
		"--format=%(refname)%00%(objectname)%00%(objecttype)%00%(*objectname)%00%(*objecttype)"}
	wanted := map[tidelock.RefName]bool{}
	const mostArgs = 1000 // beyond, all are listed and the others left out
	for _, name := range names {
		wanted[name] = true
		if len(names) <= mostArgs {
			args = append(args, string(name))
		}
	}
	out, err := r.disk.query(ctx, r.disk.command(r, args...))
	if err != nil {
		return nil, err
	}
	refs := []Ref{}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\x00")
		if len(f) != 5 {
			return nil, fmt.Errorf("read refs of repository %d: git printed %q", r.id, line)
		}
		ref := Ref{Name: tidelock.RefName(f[0]), Object: tidelock.CommitID(f[1])}
		// A pattern also covers what is below it.
		if len(names) > 0 && !wanted[ref.Name] {
			continue
		}
		switch {
		case f[2] == "commit":
			ref.Commit = ref.Object
		case f[2] == "tag" && f[4] == "commit":
			ref.Commit = tidelock.CommitID(f[3])
		case f[2] == "tag" && f[4] == "tag": // a tag of a tag, which old versions of git peel once
			if ref.Commit, err = r.peel(ctx, ref.Object); err != nil {
				return nil, err
			}
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// peel finds the commit behind an object; empty when there is none.
func (r *Repo) peel(ctx context.Context, object tidelock.CommitID) (tidelock.CommitID, error) {
	out, err := r.disk.query(ctx, r.disk.command(r, "rev-parse", "--verify", "--quiet", string(object)+"^{commit}"))
	if err != nil {
		if _, ok := errors.AsType[*commandError](err); ok {
			return "", nil
		}
		return "", err
	}
	return tidelock.CommitID(strings.TrimSpace(string(out))), nil
}

// errUnusualRef says that the files of a ref are not as git leaves them for a
// plain ref, so that git itself has to be asked.
var errUnusualRef = errors.New("unusual ref")

// readTips reads named refs as git does: the loose file first, then
// packed-refs. Packing writes packed-refs before it removes the loose file,
// and deleting removes it from packed-refs first, so a ref that exists is
// never missed and one that is gone never found again.
func (r *Repo) readTips(names []tidelock.RefName) ([]Ref, error) {
	names = slices.Sorted(slices.Values(names))
	names = slices.Compact(names)
	refs := make([]Ref, 0, len(names))
	missing := map[tidelock.RefName]bool{}
	for _, name := range names {
		object, err := r.looseRef(name)
		switch {
		case err != nil:
			return nil, err
		case object == "":
			missing[name] = true
		default:
			refs = append(refs, Ref{Name: name, Object: object})
		}
	}
	if len(missing) == 0 {
		return refs, nil
	}
	if err := r.exists(); err != nil {
		return nil, err
	}
	err := r.packedRefs(func(ref Ref) {
		if missing[ref.Name] {
			refs = append(refs, ref)
		}
	})
	slices.SortFunc(refs, byName)
	return refs, err
}

// allTips reads all refs in the same order of files as readTips.
func (r *Repo) allTips() ([]Ref, error) {
	if err := r.exists(); err != nil {
		return nil, err
	}
	loose := map[tidelock.RefName]bool{}
	refs := []Ref{}
	err := filepath.WalkDir(filepath.Join(r.dir, "refs"), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed while we looked
		}
		if err != nil {
			return err
		}
		if e.IsDir() || strings.HasSuffix(e.Name(), ".lock") {
			return nil
		}
		name := tidelock.RefName(filepath.ToSlash(strings.TrimPrefix(path, r.dir+string(filepath.Separator))))
		if tidelock.ValidRef(name) != nil {
			return errUnusualRef
		}
		object, err := r.looseRef(name)
		if err != nil {
			return err
		}
		if object != "" {
			loose[name] = true
			refs = append(refs, Ref{Name: name, Object: object})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read refs of repository %d: %w", r.id, err)
	}
	err = r.packedRefs(func(ref Ref) {
		if !loose[ref.Name] {
			refs = append(refs, ref)
		}
	})
	slices.SortFunc(refs, byName)
	return refs, err
}

func byName(a, b Ref) int { return strings.Compare(string(a.Name), string(b.Name)) }

// looseRef reads the file of a ref; empty when there is none.
func (r *Repo) looseRef(name tidelock.RefName) (tidelock.CommitID, error) {
	content, err := os.ReadFile(filepath.Join(r.dir, filepath.FromSlash(string(name))))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("read %s of repository %d: %w", name, r.id, err)
	}
	object := tidelock.CommitID(bytes.TrimSuffix(content, []byte("\n")))
	if !isObjectName(object) {
		return "", errUnusualRef
	}
	return object, nil
}

// packedRefs calls fn for each ref in packed-refs, in the order of the file.
func (r *Repo) packedRefs(fn func(Ref)) error {
	f, err := os.Open(filepath.Join(r.dir, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read refs of repository %d: %w", r.id, err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "^") {
			continue
		}
		object, name, ok := strings.Cut(line, " ")
		ref := Ref{Name: tidelock.RefName(name), Object: tidelock.CommitID(object)}
		if !ok || !isObjectName(ref.Object) || tidelock.ValidRef(ref.Name) != nil {
			return errUnusualRef
		}
		fn(ref)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read refs of repository %d: %w", r.id, err)
	}
	return nil
}

// isObjectName reports whether id is a full object name of this kind of
// repository: 40 lower-case hexadecimal digits.
func isObjectName(id tidelock.CommitID) bool {
	return len(id) == 40 && isHex(string(id))
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
