// Package limit says how much each caller may ask of the server: so many
// requests a minute, with bursts up to a minute's worth, and so many large
// ones at a time. It counts in memory and knows neither rights nor protocols:
// a surface asks it before it looks up a credential and again once it knows
// whose it is, and answers 429 in its own form.
//
//	guard := limit.NewGuard(limit.Config{User: 18000, Anonymous: 1800, SignIn: 60})
//	who, err := limit.SignIn(guard, "api", r.RemoteAddr, token, lookUp)
//	reading, err := guard.Admit("api", limit.User(who.ID))
package limit

import (
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"tidelock.dev"
)

// A Key says whose requests are counted together.
type Key struct {
	sort    keySort
	id      int64
	network netip.Prefix
}

type keySort uint8

const (
	byAddress keySort = iota
	byUser
	byToken
	byKey
	byAgent
)

// User counts all that a user does, with whatever credential.
func User(id tidelock.UserID) Key { return Key{sort: byUser, id: int64(id)} }

// Token is for credentials that stand for nobody, such as deploy tokens.
func Token(id tidelock.TokenID) Key { return Key{sort: byToken, id: int64(id)} }

// SSHKey is for keys that stand for nobody: deploy keys.
func SSHKey(id int64) Key { return Key{sort: byKey, id: id} }

// Agent counts what the agent of a cluster asks of other surfaces than its own.
func Agent(id tidelock.AgentID) Key { return Key{sort: byAgent, id: int64(id)} }

// Address counts what comes from one address with or without a port: an IPv4
// address, or the /64 that one IPv6 customer usually has. Those that cannot
// be read share an allowance.
func Address(remote string) Key {
	addr, err := netip.ParseAddr(remote)
	if err != nil {
		with, err := netip.ParseAddrPort(remote)
		if err != nil {
			return Key{}
		}
		addr = with.Addr()
	}
	addr = addr.Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return Key{}
	}
	return Key{network: network}
}

// mostCallers bounds what a Limiter remembers. The one it heard of longest ago
// is forgotten first, and then has a full allowance again.
const mostCallers = 1 << 16

// A Limiter lets every caller make so many requests a minute. It is safe for
// concurrent use.
type Limiter struct {
	name      string
	perMinute int
	now       func() time.Time

	mu      sync.Mutex
	callers *simplelru.LRU[Key, *rate.Limiter]
}

func newLimiter(name string, perMinute int, now func() time.Time) *Limiter {
	callers, err := simplelru.NewLRU[Key, *rate.Limiter](mostCallers, nil)
	if err != nil {
		panic(err) // only a size below one is refused
	}
	return &Limiter{name: name, perMinute: perMinute, now: now, callers: callers}
}

// take uses one request of a caller's allowance, if there is one.
func (l *Limiter) take(k Key) Reading {
	now := l.now()
	bucket := l.bucket(k)
	taken := bucket.AllowN(now, 1)
	return l.reading(bucket, now, taken)
}

// look says what a caller has left.
func (l *Limiter) look(k Key) Reading {
	now := l.now()
	bucket := l.bucket(k)
	return l.reading(bucket, now, bucket.TokensAt(now) >= 1)
}

func (l *Limiter) bucket(k Key) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	bucket, ok := l.callers.Get(k)
	if !ok {
		bucket = rate.NewLimiter(rate.Limit(float64(l.perMinute)/60), l.perMinute)
		l.callers.Add(k, bucket)
	}
	return bucket
}

func (l *Limiter) reading(bucket *rate.Limiter, now time.Time, admitted bool) Reading {
	left := max(bucket.TokensAt(now), 0)
	r := Reading{Name: l.name, Limit: l.perMinute, Remaining: min(int(left), l.perMinute)}
	r.Reset = now.Add(l.span(float64(l.perMinute) - left))
	if !admitted {
		r.Remaining = 0
		r.Wait = max(l.span(1-left), time.Millisecond)
	}
	return r
}

// span is how long a number of requests takes to come back.
func (l *Limiter) span(requests float64) time.Duration {
	return time.Duration(requests / float64(l.perMinute) * float64(time.Minute))
}

// A Reading is how a caller stands after a request.
type Reading struct {
	Name      string // of the limit
	Limit     int    // requests a minute; 0 where nothing is limited
	Remaining int
	Reset     time.Time     // when the whole allowance is back
	Wait      time.Duration // until a request is let through again; 0 when this one was
}

// Tell writes the reading in GitLab's headers. Of a request that was refused,
// Retry-After is the least wait.
func (r Reading) Tell(h http.Header) {
	if r.Limit > 0 {
		reset := r.Reset.Add(time.Second - 1).Truncate(time.Second).UTC()
		h.Set("RateLimit-Limit", strconv.Itoa(r.Limit))
		h.Set("RateLimit-Name", r.Name)
		h.Set("RateLimit-Observed", strconv.Itoa(r.Limit-r.Remaining))
		h.Set("RateLimit-Remaining", strconv.Itoa(r.Remaining))
		h.Set("RateLimit-Reset", strconv.FormatInt(reset.Unix(), 10))
		h.Set("RateLimit-ResetTime", reset.Format(http.TimeFormat))
	}
	if r.Wait > 0 {
		h.Set("Retry-After", strconv.Itoa(r.retryAfter()))
	}
}

func (r Reading) retryAfter() int {
	return int((r.Wait + time.Second - 1) / time.Second)
}
