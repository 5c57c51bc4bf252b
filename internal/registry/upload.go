package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver"

	"tidelock.dev"
)

// An Upload is a blob on its way into an image. It lives as long as the
// process: who was uploading when it stopped begins again. Of concurrent calls
// all but one are refused.
type Upload struct {
	ID string

	registry *Registry
	name     Name
	owner    string
	path     string

	mu        sync.Mutex // held by the one call that is at work
	algorithm string
	sum       hash.Hash
	size      int64
	done      bool // committed or cancelled
	broken    bool // what is on the medium is not known

	touched time.Time // guarded by registry.mu
}

// copyBuffers hold what is on its way from a connection to a medium. They are
// large enough that a system call costs little beside what it carries.
var copyBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// newUpload begins an upload that nobody else can find.
func (r *Registry) newUpload(ctx context.Context, name Name, algorithm string) (*Upload, error) {
	sum, err := newHash(algorithm)
	if err != nil {
		return nil, err
	}
	id := strings.ToLower(rand.Text())
	return &Upload{ID: id, registry: r, name: name, path: uploads + "/" + id, algorithm: algorithm, sum: sum}, nil
}

// StartUpload begins an upload into an image that its owner, a word that the
// caller makes up, can find again. What it is hashed with, "sha256" when left
// empty, should be that of the digest it will be committed with.
func (r *Registry) StartUpload(ctx context.Context, name Name, owner, algorithm string) (*Upload, error) {
	if algorithm == "" {
		algorithm = sha256Name
	}
	u, err := r.newUpload(ctx, name, algorithm)
	if err != nil {
		return nil, err
	}
	u.owner = owner
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.openBy[owner] >= r.maxUploads {
		return nil, Errorf(tidelock.Unavailable, TooManyRequests, "you have %d uploads that are not finished; finish or cancel some", r.openBy[owner])
	}
	u.touched = time.Now()
	r.open[u.ID] = u
	r.openBy[owner]++
	return u, nil
}

// Upload finds an upload of an image by its id. That of another image, or of
// another owner, is as unknown as one that never was.
func (r *Registry) Upload(name Name, owner, id string) (*Upload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.open[id]
	if u == nil || u.name != name || u.owner != owner {
		return nil, errNoUpload()
	}
	u.touched = time.Now()
	return u, nil
}

func errNoUpload() error {
	return Errorf(tidelock.NotFound, BlobUploadUnknown, "there is no such upload, or it was abandoned; begin again")
}

// hold lets one call at a time work on the upload.
func (u *Upload) hold() (release func(), err error) {
	if !u.mu.TryLock() {
		return nil, Errorf(tidelock.Conflict, BlobUploadInvalid, "another request is at work on this upload")
	}
	if u.done || u.broken {
		u.mu.Unlock()
		return nil, errNoUpload()
	}
	return u.mu.Unlock, nil
}

// Size is how many bytes have been taken.
func (u *Upload) Size() (int64, error) {
	release, err := u.hold()
	if err != nil {
		return 0, err
	}
	defer release()
	return u.size, nil
}

// Append takes more of the blob.
func (u *Upload) Append(ctx context.Context, content io.Reader) error {
	release, err := u.hold()
	if err != nil {
		return err
	}
	defer release()
	return u.append(ctx, content)
}

// AppendAt takes more of the blob if so many bytes were taken already, below 0
// however many were, and returns how many there are now.
func (u *Upload) AppendAt(ctx context.Context, offset int64, content io.Reader) (int64, error) {
	release, err := u.hold()
	if err != nil {
		return 0, err
	}
	defer release()
	if offset >= 0 && offset != u.size {
		return u.size, Errorf(tidelock.Invalid, RangeInvalid, "the upload has %d bytes: go on from there, not from %d", u.size, offset)
	}
	err = u.append(ctx, content)
	return u.size, err
}

// append writes to the medium what comes, hashing it on the way. What came
// before an error stays, so that the client can go on after it.
func (u *Upload) append(ctx context.Context, content io.Reader) (err error) {
	buffer := copyBuffers.Get().(*[256 << 10]byte)
	defer copyBuffers.Put(buffer)
	n, readErr := fill(content, buffer[:])
	if n == 0 && readErr != nil {
		if readErr == io.EOF {
			return nil
		}
		return readErr
	}
	w, err := u.registry.medium.Writer(ctx, u.path, u.size > 0)
	if err != nil {
		return fmt.Errorf("open an upload: %w", err)
	}
	defer func() {
		if closeErr := w.Close(); closeErr != nil {
			u.broken = true
			err = errors.Join(err, fmt.Errorf("close an upload: %w", closeErr))
		}
	}()
	for {
		if u.size+int64(n) > u.registry.maxBlob {
			return u.registry.errBlobSize()
		}
		if _, err := w.Write(buffer[:n]); err != nil {
			u.broken = true
			return fmt.Errorf("write to an upload: %w", err)
		}
		u.sum.Write(buffer[:n])
		u.size += int64(n)
		if readErr == io.EOF {
			return nil
		}
		if readErr != nil {
			return readErr
		}
		if n, readErr = fill(content, buffer[:]); n == 0 && readErr == io.EOF {
			return nil
		}
	}
}

// fill reads until the buffer is full or there is no more, so that a body that
// comes in small pieces is not written in small pieces.
func fill(content io.Reader, buffer []byte) (n int, err error) {
	n, err = io.ReadFull(content, buffer)
	if err == io.ErrUnexpectedEOF && n > 0 {
		err = io.EOF
	}
	return n, err
}

func (r *Registry) errBlobSize() error {
	return Errorf(tidelock.TooLarge, SizeInvalid, "the blob is larger than %d bytes, which is the most that is taken", r.maxBlob)
}

// Commit makes what was uploaded a blob of the image, if it has the wanted
// digest or that is empty. It has reached the disk when Commit returns. An
// upload whose commit failed is gone.
func (u *Upload) Commit(ctx context.Context, want tidelock.Digest) (tidelock.Part, error) {
	release, err := u.hold()
	if err != nil {
		return tidelock.Part{}, err
	}
	defer release()
	if want == "" {
		want = u.digest()
	}
	if err := tidelock.ValidDigest(want); err != nil {
		return tidelock.Part{}, Errorf(tidelock.Invalid, DigestInvalid, "%v", err)
	}
	if err := u.commit(ctx, want, blobLink(u.name, want)); err != nil {
		return tidelock.Part{}, err
	}
	return tidelock.Part{Digest: want, Size: u.size}, nil
}

func (u *Upload) digest() tidelock.Digest {
	return tidelock.Digest(u.algorithm + ":" + hex.EncodeToString(u.sum.Sum(nil)))
}

func (u *Upload) commit(ctx context.Context, want tidelock.Digest, link string) (err error) {
	u.done = true
	r := u.registry
	defer r.forget(u)
	w, err := r.medium.Writer(ctx, u.path, u.size > 0)
	if err != nil {
		return fmt.Errorf("open an upload: %w", err)
	}
	if got := u.digest(); got != want && u.algorithm == algorithmOf(want) {
		return errors.Join(errDigest(got, want), w.Cancel(ctx))
	}
	defer r.links.keep(want)()
	placed, err := u.place(ctx, w, want)
	if !placed {
		err = errors.Join(err, u.drop(ctx))
	}
	if err != nil {
		return err
	}
	defer r.links.turn(want)()
	return r.putLink(ctx, link, want)
}

// place makes what was uploaded the content of a digest, unless that is there
// already; then it is not placed.
func (u *Upload) place(ctx context.Context, w driver.FileWriter, want tidelock.Digest) (placed bool, err error) {
	r := u.registry
	// Who finds the content there must not go on before it is there for good.
	defer r.links.turn(want)()
	_, statErr := r.medium.Stat(ctx, blobPath(want))
	if statErr == nil && u.algorithm == algorithmOf(want) {
		return false, w.Close()
	}
	if statErr != nil && !missing(statErr) {
		return false, errors.Join(fmt.Errorf("look at blob %s: %w", want, statErr), w.Close())
	}
	err = w.Commit(ctx)
	if err = errors.Join(err, w.Close()); err != nil {
		return false, fmt.Errorf("commit an upload: %w", err)
	}
	if u.algorithm != algorithmOf(want) {
		if err := u.checkAgain(ctx, want); err != nil || statErr == nil {
			return false, err
		}
	}
	if err := r.medium.Move(ctx, u.path, blobPath(want)); err != nil {
		return false, fmt.Errorf("keep blob %s: %w", want, err)
	}
	return true, nil
}

// checkAgain reads what was uploaded, because it was hashed with another
// algorithm when it came.
func (u *Upload) checkAgain(ctx context.Context, want tidelock.Digest) error {
	sum, err := newHash(algorithmOf(want))
	if err != nil {
		return err
	}
	content, err := u.registry.medium.Reader(ctx, u.path, 0)
	if err != nil {
		return fmt.Errorf("read an upload: %w", err)
	}
	_, err = io.Copy(sum, content)
	if err = errors.Join(err, content.Close()); err != nil {
		return fmt.Errorf("read an upload: %w", err)
	}
	if got := algorithmOf(want) + ":" + hex.EncodeToString(sum.Sum(nil)); got != string(want) {
		return errDigest(tidelock.Digest(got), want)
	}
	return nil
}

func errDigest(got, want tidelock.Digest) error {
	return Errorf(tidelock.Invalid, DigestInvalid, "the content is %s and not %s", got, want)
}

// drop removes what came of the upload.
func (u *Upload) drop(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	if err := u.registry.medium.Delete(ctx, u.path); err == nil || !missing(err) {
		return err
	}
	if u.size == 0 {
		return nil
	}
	// An object of S3 is not there until it is whole; its parts are.
	w, err := u.registry.medium.Writer(ctx, u.path, true)
	if missing(err) {
		return nil
	}
	if err == nil {
		err = w.Cancel(ctx)
	}
	return err
}

// Cancel drops the upload and what came of it. It is safe to call after a
// failure, and more than once.
func (u *Upload) Cancel(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.done {
		return nil
	}
	u.done = true
	u.registry.forget(u)
	if err := u.drop(ctx); err != nil {
		return fmt.Errorf("drop an upload: %w", err)
	}
	return nil
}

func (r *Registry) forget(u *Upload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open[u.ID] != u {
		return
	}
	delete(r.open, u.ID)
	if r.openBy[u.owner]--; r.openBy[u.owner] == 0 {
		delete(r.openBy, u.owner)
	}
}

// Run drops uploads that rest for too long, until ctx is done.
func (r *Registry) Run(ctx context.Context) error {
	every := time.NewTicker(r.uploadTimeout / 4)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
			r.dropRestingUploads(ctx, time.Now().Add(-r.uploadTimeout))
		}
	}
}

func (r *Registry) dropRestingUploads(ctx context.Context, before time.Time) {
	var resting []*Upload
	r.mu.Lock()
	for _, u := range r.open {
		if u.touched.Before(before) {
			resting = append(resting, u)
		}
	}
	r.mu.Unlock()
	for _, u := range resting {
		if !u.mu.TryLock() {
			r.touch(u) // a request is at work on it, and another will follow
			continue
		}
		u.mu.Unlock()
		if err := u.Cancel(ctx); err != nil {
			r.log.WarnContext(ctx, "abandoned upload not dropped", "upload", u.ID, "error", err)
			continue
		}
		r.log.InfoContext(ctx, "abandoned upload dropped", "image", u.name, "upload", u.ID)
	}
}

func (r *Registry) touch(u *Upload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u.touched = time.Now()
}

// dropOldUploads deletes what an earlier process had begun: its hashes are
// gone, and nobody was told that it was kept.
func (r *Registry) dropOldUploads(ctx context.Context) error {
	left, err := r.medium.List(ctx, uploads)
	if err != nil && !missing(err) {
		return fmt.Errorf("list old uploads: %w", err)
	}
	for _, p := range left {
		if err := r.medium.Delete(ctx, uploads+"/"+path.Base(p)); err != nil && !missing(err) {
			return fmt.Errorf("drop an old upload: %w", err)
		}
	}
	return nil
}

const (
	sha256Name = "sha256"
	sha512Name = "sha512"
)

// algorithmOf is that of a digest, or the one to use when there is none.
func algorithmOf(digest tidelock.Digest) string {
	if algorithm, _, ok := strings.Cut(string(digest), ":"); ok {
		return algorithm
	}
	return sha256Name
}

func newHash(algorithm string) (hash.Hash, error) {
	switch algorithm {
	case sha256Name:
		return sha256.New(), nil
	case sha512Name:
		return sha512.New(), nil
	}
	return nil, Errorf(tidelock.Invalid, DigestInvalid, "%q is no algorithm of digests that is known here: use sha256 or sha512", algorithm)
}

func sumOf(algorithm string, body []byte) tidelock.Digest {
	sum, err := newHash(algorithm)
	if err != nil {
		return ""
	}
	sum.Write(body)
	return tidelock.Digest(algorithm + ":" + hex.EncodeToString(sum.Sum(nil)))
}
