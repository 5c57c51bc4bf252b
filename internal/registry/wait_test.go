package registry

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

// slow is a medium on which moving what a digest names takes until it is told
// to go on, as moving a large blob in S3 does.
type slow struct {
	medium
	path   string
	moving chan bool
	goOn   chan bool
}

func (s *slow) Move(ctx context.Context, from, to string) error {
	if to == s.path {
		close(s.moving)
		<-s.goOn
	}
	return s.medium.Move(ctx, from, to)
}

// While a large blob is put in its place, others take blobs away and bring
// new ones.
func TestNobodyWaitsForLargeBlobs(t *testing.T) {
	r, err := Open(t.Context(), Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	put := func(content string) tidelock.Part {
		part, err := r.PutBlob(t.Context(), "p1", "", strings.NewReader(content))
		if err != nil {
			t.Error(err)
		}
		return part
	}
	old := put("old")
	large := tidelock.DigestOf([]byte("large"))
	s := &slow{medium: r.medium, path: blobPath(large), moving: make(chan bool), goOn: make(chan bool)}
	r.medium = s
	placed := make(chan bool)
	go func() {
		defer close(placed)
		put("large")
	}()
	<-s.moving

	done := make(chan bool)
	go func() {
		defer close(done)
		if err := r.RemoveBlob(t.Context(), "p1", old.Digest); err != nil {
			t.Error(err)
		}
		put("new")
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("others wait for a large blob")
	}
	close(s.goOn)
	<-placed
	<-done
	if _, err := r.StatBlob(t.Context(), "p1", large); err != nil {
		t.Errorf("the large blob: %v", err)
	}
}
