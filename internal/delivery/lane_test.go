package delivery

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestLaneLetsOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fast, slow := make(chan struct{}, 1), make(chan struct{}, 1)
		began := time.Now()
		ended := make(chan string, 3)
		work := func(name string, pieces int) {
			fast <- struct{}{}
			l := newLane(fast, slow, func() {})
			defer l.leave()
			for range pieces {
				if err := l.giveWay(t.Context()); err != nil {
					t.Error(err)
				}
				time.Sleep(laneTime)
			}
			ended <- name
		}
		go work("longest", 10)
		synctest.Wait()
		go work("long", 3)
		synctest.Wait()
		time.Sleep(time.Second)
		go work("short", 1)
		for _, want := range []struct {
			name   string
			before time.Duration
		}{{"short", 4 * laneTime}, {"long", 8 * laneTime}, {"longest", 14 * laneTime}} {
			if got, took := <-ended, time.Since(began); got != want.name || took > want.before {
				t.Errorf("%s ended after %v, want %s before %v", got, took, want.name, want.before)
			}
		}
		synctest.Wait()
		if len(fast)+len(slow) != 0 {
			t.Errorf("%d and %d slots are still taken", len(fast), len(slow))
		}
	})
}

func TestLaneEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fast, slow := make(chan struct{}, 1), make(chan struct{}, 1)
		fast <- struct{}{}
		slow <- struct{}{} // somebody else's
		ctx, cancel := context.WithCancel(t.Context())
		l := newLane(fast, slow, func() {})
		time.Sleep(laneTime)
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		if err := l.giveWay(ctx); err == nil {
			t.Error("got a slot that there is not")
		}
		l.leave()
		if len(fast) != 0 || len(slow) != 1 {
			t.Errorf("%d and %d slots are taken", len(fast), len(slow))
		}
	})
}
