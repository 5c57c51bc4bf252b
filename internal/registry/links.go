package registry

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver"

	"tidelock.dev"
)

// A Link says that an image has a blob or a manifest.
type Link struct {
	Digest   tidelock.Digest
	Manifest bool
}

// Links lists, of every image in storage, the links that were made before a
// time.
func (r *Registry) Links(ctx context.Context, before time.Time) (map[Name][]Link, error) {
	found := map[Name][]Link{}
	err := r.walk(ctx, repositories, "link", func(file driver.FileInfo, digest tidelock.Digest) error {
		if !file.ModTime().Before(before) {
			return nil
		}
		link := Link{Digest: digest}
		name, _, ok := strings.Cut(strings.TrimPrefix(file.Path(), repositories+"/"), "/_layers/")
		if !ok {
			name, _, link.Manifest = strings.Cut(strings.TrimPrefix(file.Path(), repositories+"/"), "/_manifests/revisions/")
			if !link.Manifest {
				return nil
			}
		}
		found[Name(name)] = append(found[Name(name)], link)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("walk the images: %w", err)
	}
	return found, nil
}
