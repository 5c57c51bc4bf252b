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

	mu    sync.RWMutex             // held for reading while content is linked, for writing while a sweep begins or ends
	young map[tidelock.Digest]bool // linked since the sweep in progress began; nil without one
	note  sync.Mutex               // guards what is in young

	turns [1024]sync.Mutex // content of a digest, and the links to it, are made and deleted by one at a time
}

// keep tells the sweep in progress, and holds off the next until release is
// called, to leave content alone that is about to be linked.
func (l *links) keep(digest tidelock.Digest) (release func()) {
	l.mu.RLock()
	if l.young != nil {
		l.note.Lock()
		l.young[digest] = true
		l.note.Unlock()
	}
	return l.mu.RUnlock
}

// isYoung is asked by the sweep in progress.
func (l *links) isYoung(digest tidelock.Digest) bool {
	l.note.Lock()
	defer l.note.Unlock()
	return l.young[digest]
}

// turn waits until nobody else makes or deletes content of the digest, or links
// to it. Others that happen to share its turn wait, too.
func (l *links) turn(digest tidelock.Digest) (release func()) {
	turn := &l.turns[crc32.ChecksumIEEE([]byte(digest))%uint32(len(l.turns))]
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
	// Whoever links it now and was not seen yet will not find it.
	defer r.links.turn(digest)()
	if r.links.isYoung(digest) {
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
