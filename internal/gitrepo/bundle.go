package gitrepo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidelock.dev"
)

// bundleHeader begins a bundle in the form that every git reads.
const bundleHeader = "# v2 git bundle\n"

// A Bundle says what WriteBundle wrote.
type Bundle struct {
	DefaultBranch string // what HEAD names; "" when it names no branch
	Refs          int
}

// WriteBundle writes all refs and all they reach as a git bundle; of a
// repository without refs it writes nothing. The refs are read once, so that
// one that moves meanwhile is in it as it was. "git bundle create" would leave
// it out. That the repository is missing, or was deleted meanwhile, is an
// error of kind NotFound.
func (r *Repo) WriteBundle(ctx context.Context, w io.Writer) (Bundle, error) {
	b := Bundle{DefaultBranch: r.headBranch()}
	refs, err := r.Tips(ctx)
	if err != nil {
		return Bundle{}, r.orMissing(err)
	}
	if b.Refs = len(refs); b.Refs == 0 {
		return b, r.exists()
	}
	header := bufio.NewWriter(w)
	header.WriteString(bundleHeader)
	var objects strings.Builder
	for _, ref := range refs {
		if err := tidelock.ValidRef(ref.Name); err != nil { // Unbundle would not take it
			return Bundle{}, fmt.Errorf("bundle repository %d: %w", r.id, err)
		}
		fmt.Fprintf(header, "%s %s\n", ref.Object, ref.Name)
		fmt.Fprintln(&objects, ref.Object)
		if ref.Name == tidelock.BranchRef(b.DefaultBranch) {
			fmt.Fprintf(header, "%s HEAD\n", ref.Object) // what "git clone" checks out
		}
	}
	header.WriteString("\n")
	if err := header.Flush(); err != nil {
		return Bundle{}, fmt.Errorf("bundle repository %d: %w", r.id, err)
	}
	pack := r.disk.command(r, "pack-objects", "--stdout", "--revs", "--delta-base-offset", "-q")
	pack.Stdin, pack.Stdout = strings.NewReader(objects.String()), w
	if err := r.disk.runThen(ctx, pack, beNice); err != nil {
		return Bundle{}, r.orMissing(fmt.Errorf("bundle repository %d: %w", r.id, err))
	}
	return b, nil
}

// orMissing prefers to say that the repository is not there.
func (r *Repo) orMissing(err error) error {
	if missing := r.exists(); tidelock.KindOf(missing) == tidelock.NotFound {
		return missing
	}
	return err
}

// headBranch is the branch that HEAD names, "" for none.
func (r *Repo) headBranch() string {
	text, err := os.ReadFile(filepath.Join(r.dir, "HEAD"))
	if err != nil {
		return ""
	}
	name, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "ref: ")
	if !ok || tidelock.ValidRef(tidelock.RefName(name)) != nil {
		return ""
	}
	branch, _ := tidelock.RefName(name).Branch()
	return branch
}

// Unbundle makes a repository of what WriteBundle wrote. It checks that every
// object is whole and that all that the refs reach is there; on an error no
// repository is left.
func (d *Disk) Unbundle(ctx context.Context, id tidelock.ProjectID, bundle io.Reader) (_ Bundle, err error) {
	repo := d.Repo(id)
	if repo.exists() == nil {
		return Bundle{}, tidelock.Errorf(tidelock.Conflict, "repository %d exists already", id)
	}
	in := bufio.NewReaderSize(bundle, 64<<10)
	refs, err := readBundleHeader(in)
	if err != nil {
		return Bundle{}, fmt.Errorf("read the bundle of repository %d: %w", id, err)
	}
	if err := d.Create(ctx, id, "main"); err != nil {
		return Bundle{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("unbundle repository %d: %w", id, err), d.Delete(context.WithoutCancel(ctx), id))
		}
	}()
	index := d.command(repo, "index-pack", "--stdin")
	index.Stdin = in
	if err := d.run(ctx, index); err != nil {
		return Bundle{}, err
	}
	if err := repo.writeRefs(refs); err != nil {
		return Bundle{}, err
	}
	// The refs as they are in the file, because git passes over those whose
	// object is missing.
	var objects strings.Builder
	for _, ref := range refs {
		fmt.Fprintln(&objects, ref.Object)
	}
	walk := d.command(repo, "rev-list", "--objects", "--quiet", "--stdin")
	walk.Stdin = strings.NewReader(objects.String())
	if err := d.run(ctx, walk); err != nil {
		return Bundle{}, err
	}
	// Once more by git itself, which adds what annotated tags peel to.
	if err := d.run(ctx, d.command(repo, "pack-refs", "--all")); err != nil {
		return Bundle{}, err
	}
	if err := syncTree(repo.dir); err != nil {
		return Bundle{}, err
	}
	return Bundle{DefaultBranch: "main", Refs: len(refs)}, nil
}

// mostBundleRefs is far above what a repository can be worked with.
const mostBundleRefs = 20_000_000

// readBundleHeader reads up to where the pack begins.
func readBundleHeader(in *bufio.Reader) ([]Ref, error) {
	line, err := in.ReadSlice('\n')
	if err != nil || string(line) != bundleHeader {
		return nil, errors.New("it does not begin as a bundle does")
	}
	var refs []Ref
	for {
		line, err := in.ReadSlice('\n') // a line longer than the buffer is an error
		if err != nil {
			return nil, fmt.Errorf("its list of refs is cut short: %w", err)
		}
		text := strings.TrimSuffix(string(line), "\n")
		if text == "" {
			break
		}
		object, name, _ := strings.Cut(text, " ")
		ref := Ref{Name: tidelock.RefName(name), Object: tidelock.CommitID(object)}
		if name == "HEAD" {
			continue
		}
		if err := tidelock.ValidRef(ref.Name); err != nil || !isObjectName(ref.Object) {
			return nil, fmt.Errorf("its line %.100q is not a ref", text)
		}
		if refs = append(refs, ref); len(refs) > mostBundleRefs {
			return nil, errors.New("it has too many refs")
		}
	}
	if len(refs) == 0 {
		return nil, errors.New("it has no refs")
	}
	slices.SortFunc(refs, byName)
	return refs, compatible(refs)
}

// compatible finds refs that cannot be in one repository: a name given twice,
// or one that is a folder of another.
func compatible(refs []Ref) error {
	names := make(map[string]bool, len(refs))
	for _, ref := range refs {
		if names[string(ref.Name)] {
			return fmt.Errorf("it has the ref %.100q twice", ref.Name)
		}
		names[string(ref.Name)] = true
	}
	for _, ref := range refs {
		for i, c := range string(ref.Name) {
			if c == '/' && names[string(ref.Name)[:i]] {
				return fmt.Errorf("its refs %.100q and %.100q cannot both be", string(ref.Name)[:i], ref.Name)
			}
		}
	}
	return nil
}

// writeRefs gives a new repository its refs, all in one file.
func (r *Repo) writeRefs(refs []Ref) (err error) {
	f, err := os.OpenFile(filepath.Join(r.dir, "packed-refs"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, "# pack-refs with: sorted ")
	for _, ref := range refs {
		fmt.Fprintf(w, "%s %s\n", ref.Object, ref.Name)
	}
	return errors.Join(w.Flush(), f.Sync())
}
