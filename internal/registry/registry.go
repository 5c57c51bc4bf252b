// Package registry keeps the content of the OCI registry: blobs and manifests,
// each under its digest, and which of them belong to which image. It lays them
// out as the distribution project does, on a disk of its own or in an S3
// bucket through that project's driver, so that its tools can read them.
//
// It knows nothing of people, tags or what refers to what: those are rows of
// forge's. A manifest here that forge has no row of was never accepted.
//
//	r, err := registry.Open(ctx, registry.Config{Dir: "/var/lib/tidelock/registry", Log: log})
//	part, err := r.PutBlob(ctx, registry.Repo(project.ID, "site"), "", content)
package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver"

	"tidelock.dev"
)

// Config is what a Registry is made of.
type Config struct {
	Dir string    // where content lies on disk; required without S3
	S3  *S3Config // where it lies instead

	// MaxBlob is the size of the largest blob that is taken, in bytes.
	MaxBlob int64 // default 10 GiB

	// MaxUploads is how many uploads one caller may have begun and not ended.
	MaxUploads int // default 256

	// UploadTimeout is how long an upload may rest before it is abandoned.
	UploadTimeout time.Duration // default 1h

	Log *slog.Logger // required
}

const (
	defaultMaxBlob       = 10 << 30
	defaultMaxUploads    = 256
	defaultUploadTimeout = time.Hour
)

// A Registry is the content of all images. It is safe for concurrent use.
type Registry struct {
	medium        medium
	maxBlob       int64
	maxUploads    int
	uploadTimeout time.Duration
	log           *slog.Logger

	links  links
	mu     sync.Mutex
	open   map[string]*Upload // by id
	openBy map[string]int     // how many, by owner
}

// A medium is where bytes lie: the part of distribution's drivers that is
// used. PutContent and Move have reached the disk when they return, as has all
// that was written before a Commit.
type medium interface {
	GetContent(ctx context.Context, path string) ([]byte, error)
	PutContent(ctx context.Context, path string, content []byte) error
	Reader(ctx context.Context, path string, offset int64) (io.ReadCloser, error)
	Writer(ctx context.Context, path string, append bool) (driver.FileWriter, error)
	Stat(ctx context.Context, path string) (driver.FileInfo, error)
	List(ctx context.Context, path string) ([]string, error)
	Move(ctx context.Context, from, to string) error
	Delete(ctx context.Context, path string) error
	Walk(ctx context.Context, path string, f driver.WalkFn, options ...func(*driver.WalkOptions)) error
}

// Open makes a Registry and drops the uploads that an earlier one left behind.
func Open(ctx context.Context, c Config) (*Registry, error) {
	if c.Log == nil || (c.Dir == "") == (c.S3 == nil) {
		return nil, errors.New("registry: Log, and either Dir or S3, are required")
	}
	r := &Registry{
		maxBlob: c.MaxBlob, maxUploads: c.MaxUploads, uploadTimeout: c.UploadTimeout,
		log:  c.Log.With("component", "registry"),
		open: map[string]*Upload{}, openBy: map[string]int{},
	}
	if r.maxBlob <= 0 {
		r.maxBlob = defaultMaxBlob
	}
	if r.maxUploads <= 0 {
		r.maxUploads = defaultMaxUploads
	}
	if r.uploadTimeout <= 0 {
		r.uploadTimeout = defaultUploadTimeout
	}
	var err error
	if c.S3 != nil {
		r.medium, err = openS3(ctx, *c.S3)
	} else {
		r.medium, err = openDisk(c.Dir)
	}
	if err != nil {
		return nil, err
	}
	if err := r.dropOldUploads(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// MaxBlob is the size of the largest blob that is taken, in bytes.
func (r *Registry) MaxBlob() int64 { return r.maxBlob }

// A Name is that of an image in storage: it is made of the project's id, so
// that it stays when the project moves.
type Name string

// Repo names an image of a project; "" is the project's own.
func Repo(project tidelock.ProjectID, image string) Name {
	name := fmt.Sprintf("p%d", project)
	if image != "" {
		name += "/" + image
	}
	return Name(name)
}

// PutBlob takes a blob into an image. It must have the wanted digest, unless
// that is empty.
func (r *Registry) PutBlob(ctx context.Context, name Name, want tidelock.Digest, content io.Reader) (_ tidelock.Part, err error) {
	u, err := r.newUpload(ctx, name, algorithmOf(want))
	if err != nil {
		return tidelock.Part{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.Cancel(context.WithoutCancel(ctx)))
		}
	}()
	if err := u.Append(ctx, content); err != nil {
		return tidelock.Part{}, err
	}
	return u.Commit(ctx, want)
}

// Blob opens a blob of an image for reading; on disk it is an *os.File, which
// the kernel can send by itself. One that the image does not have is NotFound.
func (r *Registry) Blob(ctx context.Context, name Name, digest tidelock.Digest) (io.ReadSeekCloser, int64, error) {
	size, err := r.StatBlob(ctx, name, digest)
	if err != nil {
		return nil, 0, err
	}
	content, err := r.medium.Reader(ctx, blobPath(digest), 0)
	switch {
	case missing(err):
		return nil, 0, errNoBlob(digest)
	case err != nil:
		return nil, 0, fmt.Errorf("open blob %s: %w", digest, err)
	}
	if file, ok := content.(io.ReadSeekCloser); ok {
		return file, size, nil
	}
	return &seekable{ctx: ctx, medium: r.medium, path: blobPath(digest), size: size, open: content}, size, nil
}

// A seekable reads content of a medium that can only read on, by opening it
// anew where the next read is.
type seekable struct {
	ctx    context.Context // of the request that reads
	medium medium
	path   string
	size   int64
	at     int64
	open   io.ReadCloser // at at; nil before it is needed
}

func (s *seekable) Read(p []byte) (int, error) {
	if s.open == nil {
		if s.at >= s.size {
			return 0, io.EOF
		}
		content, err := s.medium.Reader(s.ctx, s.path, s.at)
		if err != nil {
			return 0, fmt.Errorf("read %s from %d: %w", s.path, s.at, err)
		}
		s.open = content
	}
	n, err := s.open.Read(p)
	s.at += int64(n)
	return n, err
}

func (s *seekable) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	if offset == s.at {
		return offset, nil
	}
	s.at = offset
	return offset, s.Close()
}

func (s *seekable) Close() error {
	if s.open == nil {
		return nil
	}
	err := s.open.Close()
	s.open = nil
	return err
}

// StatBlob returns the size of a blob of an image.
func (r *Registry) StatBlob(ctx context.Context, name Name, digest tidelock.Digest) (int64, error) {
	if err := tidelock.ValidDigest(digest); err != nil {
		return 0, err
	}
	return r.stat(ctx, blobLink(name, digest), digest, errNoBlob(digest))
}

// Mount makes a blob of one image one of another, too, and returns its size.
func (r *Registry) Mount(ctx context.Context, to, from Name, digest tidelock.Digest) (int64, error) {
	if _, err := r.StatBlob(ctx, from, digest); err != nil {
		return 0, err
	}
	return r.link(ctx, blobLink(to, digest), digest, errNoBlob(digest))
}

// RemoveBlob takes a blob out of an image. Its bytes stay until Sweep finds
// that no image has them.
func (r *Registry) RemoveBlob(ctx context.Context, name Name, digest tidelock.Digest) error {
	if err := tidelock.ValidDigest(digest); err != nil {
		return err
	}
	return r.unlink(ctx, blobLink(name, digest), digest)
}

// PutManifest stores a manifest of an image under the SHA-256 of its bytes,
// which it returns once they have reached the disk.
func (r *Registry) PutManifest(ctx context.Context, name Name, mediaType string, body []byte) (tidelock.Digest, error) {
	digest := tidelock.DigestOf(body)
	return digest, r.PutManifestAs(ctx, name, digest, mediaType, body)
}

// PutManifestAs stores a manifest under a digest of any algorithm, which must
// be that of its bytes.
func (r *Registry) PutManifestAs(ctx context.Context, name Name, digest tidelock.Digest, _ string, body []byte) error {
	if err := tidelock.ValidDigest(digest); err != nil {
		return err
	}
	if len(body) > MaxManifest {
		return errManifestSize()
	}
	if _, err := r.medium.Stat(ctx, blobPath(digest)); err == nil && sumOf(algorithmOf(digest), body) == digest {
		if _, err := r.link(ctx, manifestLink(name, digest), digest, errNoBlob(digest)); tidelock.KindOf(err) != tidelock.NotFound {
			return err
		}
	}
	u, err := r.newUpload(ctx, name, algorithmOf(digest))
	if err != nil {
		return err
	}
	if err := u.Append(ctx, bytes.NewReader(body)); err != nil {
		return errors.Join(err, u.Cancel(ctx))
	}
	if err := u.commit(ctx, digest, manifestLink(name, digest)); err != nil {
		return errors.Join(err, u.Cancel(ctx))
	}
	return nil
}

// Manifest returns a manifest of an image and the media type that its bytes
// tell.
func (r *Registry) Manifest(ctx context.Context, name Name, digest tidelock.Digest) (mediaType string, body []byte, err error) {
	if body, err = r.ManifestBody(ctx, name, digest); err != nil {
		return "", nil, err
	}
	return mediaTypeOf(body), body, nil
}

// ManifestBody is Manifest for those who know the media type: to find it out of
// a large manifest takes longer than to read it.
func (r *Registry) ManifestBody(ctx context.Context, name Name, digest tidelock.Digest) ([]byte, error) {
	if err := r.StatManifest(ctx, name, digest); err != nil {
		return nil, err
	}
	body, err := r.medium.GetContent(ctx, blobPath(digest))
	switch {
	case missing(err):
		return nil, errNoManifest(digest)
	case err != nil:
		return nil, fmt.Errorf("read manifest %s: %w", digest, err)
	case sumOf(algorithmOf(digest), body) != digest:
		return nil, fmt.Errorf("manifest %s of %s has changed on its medium", digest, name)
	}
	return body, nil
}

// StatManifest is NotFound for a manifest that an image does not have.
func (r *Registry) StatManifest(ctx context.Context, name Name, digest tidelock.Digest) error {
	if err := tidelock.ValidDigest(digest); err != nil {
		return err
	}
	_, err := r.stat(ctx, manifestLink(name, digest), digest, errNoManifest(digest))
	return err
}

// RemoveManifest takes a manifest out of an image, as RemoveBlob does a blob.
func (r *Registry) RemoveManifest(ctx context.Context, name Name, digest tidelock.Digest) error {
	if err := tidelock.ValidDigest(digest); err != nil {
		return err
	}
	return r.unlink(ctx, manifestLink(name, digest), digest)
}

// stat returns the size of what a link of an image leads to.
func (r *Registry) stat(ctx context.Context, link string, digest tidelock.Digest, absent error) (int64, error) {
	target, err := r.medium.GetContent(ctx, link)
	switch {
	case missing(err):
		return 0, absent
	case err != nil:
		return 0, fmt.Errorf("read link %s: %w", link, err)
	case strings.TrimSpace(string(target)) != string(digest):
		return 0, absent // torn by a crash before anybody was told of it
	}
	info, err := r.medium.Stat(ctx, blobPath(digest))
	switch {
	case missing(err):
		return 0, absent
	case err != nil:
		return 0, fmt.Errorf("look at blob %s: %w", digest, err)
	}
	return info.Size(), nil
}

// link makes content one of an image's, unless Sweep has just deleted it.
func (r *Registry) link(ctx context.Context, link string, digest tidelock.Digest, absent error) (int64, error) {
	defer r.links.keep(digest)()
	defer r.links.turn(digest)()
	info, err := r.medium.Stat(ctx, blobPath(digest))
	switch {
	case missing(err):
		return 0, absent
	case err != nil:
		return 0, fmt.Errorf("look at blob %s: %w", digest, err)
	}
	return info.Size(), r.putLink(ctx, link, digest)
}

// putLink is called in the digest's turn: who finds a link there must not go on
// before it is there for good, and its folder must not go meanwhile.
func (r *Registry) putLink(ctx context.Context, link string, digest tidelock.Digest) error {
	if target, err := r.medium.GetContent(ctx, link); err == nil && string(target) == string(digest) {
		return nil
	}
	if err := r.medium.PutContent(ctx, link, []byte(digest)); err != nil {
		return fmt.Errorf("write link %s: %w", link, err)
	}
	return nil
}

func (r *Registry) unlink(ctx context.Context, link string, digest tidelock.Digest) error {
	defer r.links.turn(digest)()
	if err := r.medium.Delete(ctx, strings.TrimSuffix(link, "/link")); err != nil && !missing(err) {
		return fmt.Errorf("remove link %s: %w", link, err)
	}
	return nil
}

func missing(err error) bool {
	_, ok := errors.AsType[driver.PathNotFoundError](err)
	return ok
}

// Where things lie, as in distribution's storage; uploads are our own.
const (
	root         = "/docker/registry/v2"
	blobs        = root + "/blobs"
	repositories = root + "/repositories"
	uploads      = "/uploads"
)

func blobPath(digest tidelock.Digest) string {
	algorithm, hash, _ := strings.Cut(string(digest), ":")
	return blobs + "/" + algorithm + "/" + hash[:2] + "/" + hash + "/data"
}

func blobLink(name Name, digest tidelock.Digest) string {
	return repositories + "/" + string(name) + "/_layers/" + strings.Replace(string(digest), ":", "/", 1) + "/link"
}

func manifestLink(name Name, digest tidelock.Digest) string {
	return repositories + "/" + string(name) + "/_manifests/revisions/" + strings.Replace(string(digest), ":", "/", 1) + "/link"
}
