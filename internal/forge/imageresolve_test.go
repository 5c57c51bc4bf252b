package forge_test

import (
	"sync"
	"testing"

	"tidelock.dev"
)

// TestResolveDigestWhileTagsMove finds what is named by a digest, and nothing
// else, wherever its tags go meanwhile.
func TestResolveDigestWhileTagsMove(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	first := w.mustPush(project, "", "one", "latest")
	var moving sync.WaitGroup
	done := make(chan struct{})
	moving.Go(func() {
		defer close(done)
		for i := range 40 {
			if _, err := w.pushImage(w.root, project, "", []string{"two", "one"}[i%2], "latest"); err != nil {
				t.Error(err)
			}
		}
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		head, err := w.ResolveImage(t.Context(), project.ID, "", tidelock.OCIRepository, tidelock.RefSpec{Digest: string(first.Digest)})
		if err != nil || head.Digest != first.Digest {
			t.Errorf("got %s at %s: %v", head.Ref, head.Digest, err)
			break
		}
	}
	moving.Wait()
}
