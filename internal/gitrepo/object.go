package gitrepo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"tidelock.dev"
)

// objects is a running git that hands out objects by name, one after another.
type objects struct {
	in  io.Writer
	out *bufio.Reader
}

// withObjects runs fn with a git that hands out objects of the repository.
func (r *Repo) withObjects(ctx context.Context, fn func(*objects) error) error {
	if err := r.exists(); err != nil {
		return err
	}
	release, err := r.disk.queries.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	cmd := r.disk.command(r, "cat-file", "--batch")
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("run git cat-file: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("run git cat-file: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		err := r.disk.run(ctx, cmd)
		in.Close() // also when git did not start
		out.Close()
		ended <- err
	}()
	if err := fn(&objects{in: in, out: bufio.NewReaderSize(out, 64<<10)}); err != nil {
		cancel()
		if runErr := <-ended; runErr != nil && tidelock.KindOf(err) == tidelock.Internal && !errors.Is(runErr, context.Canceled) {
			return errors.Join(runErr, err)
		}
		return err
	}
	in.Close()
	return <-ended
}

// get reads one object, of at most maxAnswer bytes. One that is missing is of
// kind NotFound.
func (o *objects) get(id tidelock.CommitID) (kind string, content []byte, err error) {
	kind, size, err := o.ask(id)
	if err != nil {
		return "", nil, err
	}
	if size > maxAnswer {
		return "", nil, tidelock.Errorf(tidelock.TooLarge, "object %s is larger than %d MiB", id, maxAnswer>>20)
	}
	content, err = o.content(id, size)
	return kind, content, err
}

// ask asks for one object, whose content has to be read next.
func (o *objects) ask(id tidelock.CommitID) (kind string, size int64, err error) {
	if !isObjectName(id) {
		return "", 0, tidelock.Errorf(tidelock.NotFound, "%.200q is not the name of an object", id)
	}
	if _, err := io.WriteString(o.in, string(id)+"\n"); err != nil {
		return "", 0, fmt.Errorf("ask for object %s: %w", id, err)
	}
	header, err := o.out.ReadString('\n')
	if err != nil {
		return "", 0, fmt.Errorf("read object %s: %w", id, err)
	}
	f := strings.Fields(header)
	if len(f) == 2 && f[1] == "missing" {
		return "", 0, tidelock.Errorf(tidelock.NotFound, "no object %s", id)
	}
	if len(f) != 3 {
		return "", 0, fmt.Errorf("read object %s: git printed %q", id, header)
	}
	size, err = strconv.ParseInt(f[2], 10, 64)
	if err != nil || size < 0 {
		return "", 0, fmt.Errorf("read object %s: git printed %q", id, header)
	}
	return f[1], size, nil
}

// content reads what was asked for.
func (o *objects) content(id tidelock.CommitID, size int64) ([]byte, error) {
	content := make([]byte, size+1) // git ends it with a newline
	if _, err := io.ReadFull(o.out, content); err != nil {
		return nil, fmt.Errorf("read object %s: %w", id, err)
	}
	return content[:size], nil
}

// Blob reads the content of a file by the name of its object. One that is
// larger than limit bytes is of kind TooLarge, and its content is not read.
func (r *Repo) Blob(ctx context.Context, id tidelock.CommitID, limit int64) ([]byte, error) {
	if !isObjectName(id) {
		return nil, errNoBlob(id)
	}
	if err := r.exists(); err != nil {
		return nil, err
	}
	cmd := r.disk.command(r, "cat-file", "--batch-check=%(objecttype) %(objectsize)")
	cmd.Stdin = strings.NewReader(string(id) + "\n")
	out, err := r.disk.query(ctx, cmd)
	if err != nil {
		return nil, err
	}
	kind, text, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if kind != "blob" {
		return nil, errNoBlob(id)
	}
	if size, err := strconv.ParseInt(text, 10, 64); err != nil || size > limit {
		return nil, tidelock.Errorf(tidelock.TooLarge, "object %s has %s bytes, more than %d", id, text, limit)
	}
	return r.disk.query(ctx, r.disk.command(r, "cat-file", "blob", string(id)))
}

func errNoBlob(id tidelock.CommitID) error {
	return tidelock.Errorf(tidelock.NotFound, "%.200q is not the content of a file", id)
}
