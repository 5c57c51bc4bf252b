package gitserver

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"tidelock.dev"
	"tidelock.dev/internal/limit"
)

// A door counts who is inside, so that clients who prove nothing can neither
// take all connections nor try for ever.
type door struct {
	limits SSHLimits

	mu        sync.Mutex
	inside    int
	unproven  map[limit.Key]int // connections by address
	waiting   int               // the sum of those
	keys      map[tidelock.KeyID]int
	failures  map[limit.Key]*rate.Limiter // by address; nobody who is not in it has failed lately
	forgotten time.Time                   // when failures were last looked through
}

// maxFailing bounds how many addresses are remembered for their failures. When
// there are more, all start anew: somebody with that many addresses is not
// stopped by counting them.
const maxFailing = 10_000

// failureEvery is how often an address is given another failure.
const failureEvery = 2 * time.Second

func newDoor(limits SSHLimits) *door {
	return &door{
		limits: limits, unproven: map[limit.Key]int{}, keys: map[tidelock.KeyID]int{}, failures: map[limit.Key]*rate.Limiter{},
	}
}

// Why somebody is not let in.
const (
	doorFull     = "full"     // connections in all
	doorCrowded  = "crowded"  // too many who have proven nothing
	doorAddress  = "address"  // too many of them from one address
	doorFailures = "failures" // too many failures from one address
	doorKey      = "key"      // too many connections of one key
)

// knock lets a connection in that has proven nothing yet, or says why not.
func (d *door) knock(address string) (refused string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := limit.Address(address)
	switch {
	case d.inside >= d.limits.Connections:
		return doorFull
	case d.waiting >= d.limits.Unproven:
		return doorCrowded
	case d.unproven[at] >= d.limits.PerAddress:
		return doorAddress
	}
	if l := d.failures[at]; l != nil && l.Tokens() < 1 {
		return doorFailures
	}
	d.inside++
	d.waiting++
	d.unproven[at]++
	return ""
}

// fail turns a connection out that has not proven anything.
func (d *door) fail(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inside--
	d.known(address)
	at := limit.Address(address)
	l := d.failures[at]
	if l == nil {
		d.forget()
		l = rate.NewLimiter(rate.Every(failureEvery), d.limits.Failures)
		d.failures[at] = l
	}
	l.Allow()
}

// forget drops the addresses that have their failures back.
func (d *door) forget() {
	now := time.Now()
	if len(d.failures) >= maxFailing {
		clear(d.failures)
	}
	if now.Sub(d.forgotten) < time.Minute {
		return
	}
	d.forgotten = now
	for at, l := range d.failures {
		if l.TokensAt(now) >= float64(d.limits.Failures) {
			delete(d.failures, at)
		}
	}
}

// prove lets the holder of a key go further in, or reports that the key is
// held by too many already; the connection is then to leave.
func (d *door) prove(address string, key tidelock.KeyID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known(address)
	d.keys[key]++
	return d.keys[key] <= d.limits.PerKey
}

func (d *door) known(address string) {
	at := limit.Address(address)
	d.waiting--
	if d.unproven[at]--; d.unproven[at] == 0 {
		delete(d.unproven, at)
	}
}

// leave lets a connection out whose key is proven.
func (d *door) leave(key tidelock.KeyID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inside--
	if d.keys[key]--; d.keys[key] == 0 {
		delete(d.keys, key)
	}
}

// count is how many are inside, and how many of them have proven nothing.
func (d *door) count() (inside, unproven int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.inside, d.waiting
}
