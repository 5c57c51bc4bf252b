package stage_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"tidelock.dev/internal/stage"
)

// A journal notes what happened, in order.
type journal struct {
	mu      sync.Mutex
	entries []string
}

func (j *journal) add(entry string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, entry)
}

// service runs until it is told to stop, and notes both.
func (j *journal) service(name string, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		j.add("start " + name)
		<-ctx.Done()
		j.add("stop " + name)
		return err
	}
}

func TestStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- stage.Run(ctx,
				stage.Stage{j.service("store", nil)},
				stage.Stage{j.service("forge", nil)},
				stage.Stage{j.service("http", nil)},
			)
		}()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatalf("got %v, want no error", err)
		}
		want := []string{"stop http", "stop forge", "stop store"}
		if got := j.entries[3:]; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestEarlyReturnStopsEverything(t *testing.T) {
	broken := errors.New("broken")
	late := errors.New("close store")
	for _, tc := range []struct {
		name   string
		early  error
		last   error
		wanted []error
	}{
		{name: "nil", early: nil},
		{name: "error", early: broken, wanted: []error{broken}},
		{name: "joined", early: broken, last: late, wanted: []error{broken, late}},
		{name: "cancelled by itself", early: context.Canceled, wanted: []error{context.Canceled}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var j journal
			err := stage.Run(t.Context(),
				stage.Stage{j.service("store", tc.last)},
				stage.Stage{
					func(context.Context) error { return tc.early },
					j.service("beside", nil),
				},
				stage.Stage{j.service("after", nil)},
			)
			if (err != nil) != (len(tc.wanted) > 0) {
				t.Errorf("got %v, want %v", err, tc.wanted)
			}
			for _, want := range tc.wanted {
				if !errors.Is(err, want) {
					t.Errorf("got %v, want it to be %v", err, want)
				}
			}
			for _, name := range []string{"store", "beside", "after"} {
				if slices.Contains(j.entries, "start "+name) && !slices.Contains(j.entries, "stop "+name) {
					t.Errorf("%s was left running: %v", name, j.entries)
				}
			}
		})
	}
}

func TestCancellationIsNotAnError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := stage.Run(ctx, stage.Stage{func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	if err != nil {
		t.Errorf("got %v, want no error", err)
	}
}
