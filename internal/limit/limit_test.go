package limit_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
	"tidelock.dev/internal/limit"
)

func TestAllowanceComesBackWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := limit.NewGuard(limit.Config{User: 60})
		ada, bob := limit.User(1), limit.User(2)
		for i := range 60 {
			r, err := g.Admit("api", ada)
			if err != nil || r.Remaining != 59-i || r.Wait != 0 {
				t.Fatalf("request %d: got %+v, %v", i, r, err)
			}
		}
		r, err := g.Admit("api", ada)
		if _, ok := errors.AsType[*limit.Exceeded](err); !ok || tidelock.KindOf(err) != tidelock.Unavailable {
			t.Fatalf("got %v, want that the limit is exceeded", err)
		}
		if r.Wait <= 0 || r.Wait > time.Second || r.Remaining != 0 {
			t.Fatalf("got %+v, want a wait of at most a second", r)
		}
		if _, err := g.Admit("api", bob); err != nil {
			t.Fatalf("somebody else: %v", err)
		}
		time.Sleep(r.Wait)
		if _, err := g.Admit("api", ada); err != nil {
			t.Fatalf("after the wait: %v", err)
		}
		if _, err := g.Admit("api", ada); err == nil {
			t.Fatal("one wait bought two requests")
		}
		time.Sleep(time.Hour)
		if r, _ := g.Admit("api", ada); r.Remaining != 59 {
			t.Fatalf("after an hour %d remain, want no more than a minute's worth", r.Remaining)
		}
	})
}

func TestHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is 2000-01-01 00:00:00 UTC
		g := limit.NewGuard(limit.Config{Anonymous: 2})
		from := limit.Address("192.0.2.1:4711")
		var got http.Header
		for range 3 {
			r, _ := g.Admit("api", from)
			got = http.Header{}
			r.Tell(got)
		}
		for name, want := range map[string]string{
			"RateLimit-Limit": "2", "RateLimit-Observed": "2", "RateLimit-Remaining": "0", "RateLimit-Name": "anonymous",
			"RateLimit-Reset": "946684860", "RateLimit-ResetTime": "Sat, 01 Jan 2000 00:01:00 GMT", "Retry-After": "30",
		} {
			if got.Get(name) != want {
				t.Errorf("%s: got %q, want %q", name, got.Get(name), want)
			}
		}
	})
}

func TestNoLimitTellsNothing(t *testing.T) {
	for name, g := range map[string]*limit.Guard{"none": nil, "zero": limit.NewGuard(limit.Config{})} {
		h := http.Header{}
		for range 1000 {
			r, err := g.Admit("api", limit.User(1))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			r.Tell(h)
		}
		if len(h) != 0 {
			t.Errorf("%s: got headers %v", name, h)
		}
	}
}

func TestAddress(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1:1", "192.0.2.1:2", true},
		{"192.0.2.1:1", "192.0.2.2:1", false},
		{"192.0.2.1", "192.0.2.1:2", true},
		{"[::ffff:192.0.2.1]:1", "192.0.2.1:2", true},
		{"[2001:db8::1]:1", "[2001:db8::ffff:2]:1", true},
		{"[2001:db8:0:1::1]:1", "[2001:db8:0:2::1]:1", false},
		{"[fe80::1%eth0]:1", "[fe80::1%eth1]:1", true},
		{"", "not an address", true},
		{"", "0.0.0.0:1", false},
	} {
		if same := limit.Address(tc.a) == limit.Address(tc.b); same != tc.same {
			t.Errorf("%q and %q: got same %v, want %v", tc.a, tc.b, same, tc.same)
		}
	}
	if limit.User(1) == limit.Token(1) || limit.Token(1) == limit.SSHKey(1) {
		t.Error("callers of different sorts share an allowance")
	}
}

var errBad = tidelock.Errorf(tidelock.Unauthenticated, "bad")

// signIns counts look-ups.
type signIns struct {
	guard   *limit.Guard
	lookUps int
}

func (s *signIns) try(from, credential string) error {
	_, err := limit.SignIn(s.guard, "api", from, credential, func() (string, error) {
		s.lookUps++
		if strings.HasPrefix(credential, "good") {
			return "ada", nil
		}
		return "", errBad
	})
	return err
}

func TestGuessing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &signIns{guard: limit.NewGuard(limit.Config{SignIn: 5, Anonymous: 20})}
		const from, elsewhere = "192.0.2.1:1", "192.0.2.9:1"
		exceeded := func(err error) bool {
			_, ok := errors.AsType[*limit.Exceeded](err)
			return ok
		}
		for i := range 5 {
			if err := s.try(from, fmt.Sprint("bad", i)); err != errBad {
				t.Fatalf("guess %d: got %v, want %v", i, err, errBad)
			}
		}
		for i := range 10 {
			if err := s.try(from, fmt.Sprint("worse", i)); !exceeded(err) {
				t.Fatalf("a guess too many: got %v", err)
			}
		}
		// The neighbours behind the same address work on, also with tokens
		// that were not seen before, and others are not touched at all.
		for _, credential := range []string{"good1", "good2", "good1"} {
			if err := s.try(from, credential); err != nil {
				t.Fatalf("%s: %v", credential, err)
			}
		}
		if err := s.try(elsewhere, "bad"); err != errBad {
			t.Fatalf("another address: got %v, want %v", err, errBad)
		}
		// Who goes on is refused without a look-up.
		for i := range 20 {
			s.try(from, fmt.Sprint("on", i))
		}
		before := s.lookUps
		for i := range 100 {
			if err := s.try(from, fmt.Sprint("and on", i)); !exceeded(err) {
				t.Fatalf("got %v", err)
			}
		}
		if s.lookUps != before {
			t.Errorf("%d look-ups for guesses beyond every limit, want none", s.lookUps-before)
		}
		if err := s.try(from, "good1"); err != nil {
			t.Errorf("a token that was good a moment ago: %v", err)
		}
	})
}

func TestARevokedTokenIsDoubtedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := limit.NewGuard(limit.Config{SignIn: 1, Anonymous: 1})
		err := error(nil)
		lookUps := 0
		try := func() {
			limit.SignIn(g, "api", "192.0.2.1:1", "token", func() (int, error) {
				lookUps++
				return 0, err
			})
		}
		try()
		err = errBad
		for range 50 {
			try()
		}
		if lookUps > 4 {
			t.Errorf("got %d look-ups of a token that is good no more, want them to end", lookUps)
		}
	})
}

func TestOnlyBadCredentialsCount(t *testing.T) {
	g := limit.NewGuard(limit.Config{SignIn: 1})
	broken := errors.New("the database is away")
	for range 10 {
		_, err := limit.SignIn(g, "api", "192.0.2.1:1", "token", func() (int, error) { return 0, broken })
		if err != broken {
			t.Fatalf("got %v, want %v", err, broken)
		}
	}
}

func TestLargeRequestsAtATime(t *testing.T) {
	registry := prometheus.NewRegistry()
	g := limit.NewGuard(limit.Config{Large: 2, Metrics: registry})
	ada := limit.User(1)
	first, err := g.Hold("api", ada)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Hold("api", ada); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Hold("api", ada); err == nil {
		t.Fatal("a third ran beside two")
	}
	if _, err := g.Hold("api", limit.User(2)); err != nil {
		t.Fatalf("somebody else: %v", err)
	}
	first()
	first() // does not count twice
	if _, err := g.Hold("api", ada); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Hold("api", ada); err == nil {
		t.Fatal("a third ran beside two")
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("got %v, %v", families, err)
	}
	if got := families[0].GetMetric()[0].GetCounter().GetValue(); got != 2 {
		t.Errorf("counted %v refusals, want 2", got)
	}
}

// BenchmarkAdmit is what every request pays.
func BenchmarkAdmit(b *testing.B) {
	g := limit.NewGuard(limit.Config{User: 18_000, Anonymous: 1_800, SignIn: 60})
	b.Run("one user", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			g.Admit("api", limit.User(1))
		}
	})
	b.Run("addresses without end", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			g.Admit("api", limit.Address(fmt.Sprintf("10.%d.%d.%d:1", i>>16&255, i>>8&255, i&255)))
		}
	})
	b.Run("together", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				g.Admit("api", limit.User(1))
			}
		})
	})
	b.Run("good sign-in", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			limit.SignIn(g, "api", "192.0.2.1:1", "glpat-0123456789abcdefghij", func() (int, error) { return 1, nil })
		}
	})
	b.Run("guess refused", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			limit.SignIn(g, "api", "192.0.2.2:1", "glpat-0123456789abcdefghij", func() (int, error) { return 0, errBad })
		}
	})
}

func TestWaitingRequestsAtATime(t *testing.T) {
	g := limit.NewGuard(limit.Config{Large: 1, Waiting: 2})
	ada := limit.User(1)
	first, ok := g.Wait(ada)
	if !ok {
		t.Fatal("nobody waits, and the first may not")
	}
	if _, ok := g.Wait(ada); !ok {
		t.Fatal("the second may not wait")
	}
	if _, ok := g.Wait(ada); ok {
		t.Fatal("a third waits beside two")
	}
	if _, ok := g.Wait(limit.User(2)); !ok {
		t.Fatal("somebody else may not wait")
	}
	if _, err := g.Hold("api", ada); err != nil {
		t.Fatalf("those who wait are in the way of large requests: %v", err)
	}
	first()
	first() // does not count twice
	if _, ok := g.Wait(ada); !ok {
		t.Fatal("one left, and nobody may take its place")
	}
	if _, ok := g.Wait(ada); ok {
		t.Fatal("a third waits beside two")
	}
	var none *limit.Guard
	if release, ok := none.Wait(ada); !ok {
		t.Fatal("a guard that is none refused")
	} else {
		release()
	}
}
