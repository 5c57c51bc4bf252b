package forge_test

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// meanwhileStore does something else, if it can, before the first write of a
// project.
type meanwhileStore struct {
	forge.Store
	once      sync.Once
	meanwhile func() (done <-chan struct{})
}

func (s *meanwhileStore) UpdateProject(ctx context.Context, p tidelock.Project) (tidelock.Project, error) {
	s.once.Do(func() {
		select {
		case <-s.meanwhile():
		case <-time.After(300 * time.Millisecond):
		}
	})
	return s.Store.UpdateProject(ctx, p)
}

// TestEditsDoNotUndoEachOther makes a project private while somebody else
// writes its description.
func TestEditsDoNotUndoEachOther(t *testing.T) {
	between := &meanwhileStore{}
	w := newWorldWith(t, func(s forge.Store) forge.Store {
		between.Store = s
		return between
	})
	project := w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	id := strconv.FormatInt(int64(project.ID), 10)
	hidden := make(chan struct{})
	between.meanwhile = func() <-chan struct{} {
		go func() {
			defer close(hidden)
			private := tidelock.Private
			if _, err := w.EditProject(t.Context(), w.root, id, forge.ProjectEdit{Visibility: &private}); err != nil {
				t.Error(err)
			}
		}()
		return hidden
	}
	text := "what it is"
	if _, err := w.EditProject(t.Context(), w.root, id, forge.ProjectEdit{Description: &text}); err != nil {
		t.Fatal(err)
	}
	<-hidden
	got, err := w.Project(t.Context(), w.root, id)
	if err != nil || got.Visibility != tidelock.Private || got.Description != text {
		t.Errorf("got %v %q, %v", got.Visibility, got.Description, err)
	}
}
