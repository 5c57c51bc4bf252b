package registry

import (
	"context"
	"fmt"
	"hash/crc32"
	"path"
	"strings"
	"sync"

	"github.com/distribution/distribution/v3/registry/storage/driver"

	"tidelock.dev"
)

// links lets content be linked to images while Sweep deletes what no image
// links to.
type links struct {
	sweeping sync.Mutex // one sweep at a time

	mu    sync.RWMutex             // held for reading while a link is made, for writing while content is deleted
	young map[tidelock.Digest]bool // linked since the sweep in progress began; nil without one
	note  sync.Mutex               // guards what is in young

	placing [1024]sync.Mutex // content of a digest is put in its place by one at a time
}

// keep holds off the sweep from content that is about to be linked, until
// release is called, and lets this sweep leave it alone afterwards.
func (l *links) keep(digest tidelock.Digest) (release func()) {
	l.mu.RLock()
	if l.young != nil {
		l.note.Lock()
		l.young[digest] = true
		l.note.Unlock()
	}
	return l.mu.RUnlock
}

// place waits until nobody else puts the content of a digest, or of one that
// happens to share its turn, in its place.
func (l *links) place(digest tidelock.Digest) (release func()) {
	turn := &l.placing[crc32.ChecksumIEEE([]byte(digest))%uint32(len(l.placing))]
	turn.Lock()
	return turn.Unlock
}

// Swept is what a sweep deleted, or would delete.
type Swept struct {
	Blobs int
	Bytes int64
}

// Sweep deletes the bytes of blobs and manifests that no image has. Uploads
// and mounts go on meanwhile. With dry it only counts.
func (r *Registry) Sweep(ctx context.Context, dry bool) (swept Swept, err error) {
	r.links.sweeping.Lock()
	defer r.links.sweeping.Unlock()
	r.links.mu.Lock()
	r.links.young = map[tidelock.Digest]bool{}
	r.links.mu.Unlock()
	defer func() {
		r.links.mu.Lock()
		r.links.young = nil
		r.links.mu.Unlock()
	}()

	linked := map[tidelock.Digest]bool{}
	err = r.walk(ctx, repositories, "link", func(file driver.FileInfo, digest tidelock.Digest) error {
		linked[digest] = true
		return nil
	})
	if err != nil {
		return Swept{}, fmt.Errorf("walk the images: %w", err)
	}
	err = r.walk(ctx, blobs, "data", func(file driver.FileInfo, digest tidelock.Digest) error {
		if linked[digest] {
			return nil
		}
		deleted, err := r.deleteUnlinked(ctx, digest, dry)
		if err != nil || !deleted {
			return err
		}
		swept.Blobs++
		swept.Bytes += file.Size()
		return nil
	})
	if err != nil {
		return swept, fmt.Errorf("walk the blobs: %w", err)
	}
	return swept, nil
}

// deleteUnlinked deletes content unless it was linked after the sweep began.
func (r *Registry) deleteUnlinked(ctx context.Context, digest tidelock.Digest, dry bool) (bool, error) {
	r.links.mu.Lock()
	defer r.links.mu.Unlock()
	if r.links.young[digest] {
		return false, nil
	}
	if dry {
		return true, nil
	}
	if err := r.medium.Delete(ctx, path.Dir(blobPath(digest))); err != nil && !missing(err) {
		return false, fmt.Errorf("delete blob %s: %w", digest, err)
	}
	return true, nil
}

// walk calls f for every file of a name below a path; the two folders that it
// lies in name a digest.
func (r *Registry) walk(ctx context.Context, from, name string, f func(driver.FileInfo, tidelock.Digest) error) error {
	err := r.medium.Walk(ctx, from, func(file driver.FileInfo) error {
		if file.IsDir() || path.Base(file.Path()) != name {
			return nil
		}
		words := strings.Split(path.Dir(file.Path()), "/")
		hash := words[len(words)-1]
		algorithm := words[len(words)-2]
		if len(algorithm) == 2 && len(words) > 2 { // blobs have a folder of two digits between
			algorithm = words[len(words)-3]
		}
		digest := tidelock.Digest(algorithm + ":" + hash)
		if tidelock.ValidDigest(digest) != nil {
			return nil
		}
		return f(file, digest)
	})
	if missing(err) {
		return nil
	}
	return err
}
