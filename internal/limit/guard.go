package limit

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
)

// Config is how many requests a minute callers may make; 0 sets no limit.
type Config struct {
	User      int // one user, deploy token or deploy key
	Anonymous int // one address, without a credential
	SignIn    int // one address, with credentials that are not valid

	// Large is how many requests that cost much one caller may have running.
	Large int // default 8

	// Waiting is how many requests that only wait one caller may have.
	Waiting int // default 32

	Metrics prometheus.Registerer // default: not registered anywhere
	Now     func() time.Time      // default time.Now
}

// A Guard applies the limits of all surfaces together. A nil Guard refuses
// nothing. It is safe for concurrent use.
type Guard struct {
	users, anonymous, signIns *Limiter // nil without a limit
	good                      remembered
	refused                   *prometheus.CounterVec

	large, waiting int

	mu      sync.Mutex
	running map[Key]int // large requests
	idle    map[Key]int // waiting ones
}

// NewGuard makes a guard.
func NewGuard(c Config) *Guard {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Large <= 0 {
		c.Large = 8
	}
	if c.Waiting <= 0 {
		c.Waiting = 32
	}
	g := &Guard{
		large: c.Large, waiting: c.Waiting, running: map[Key]int{}, idle: map[Key]int{},
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_rate_limited_total",
			Help: "Requests refused because their caller asked too much, by surface and limit.",
		}, []string{"surface", "limit"}),
	}
	for _, l := range []struct {
		to        **Limiter
		name      string
		perMinute int
	}{
		{&g.users, "user", c.User},
		{&g.anonymous, "anonymous", c.Anonymous},
		{&g.signIns, "sign_in", c.SignIn},
	} {
		if l.perMinute > 0 {
			*l.to = newLimiter(l.name, l.perMinute, c.Now)
		}
	}
	if c.Metrics != nil {
		c.Metrics.MustRegister(g.refused)
	}
	return g
}

// Exceeded says that a caller has to wait. To whoever does not know it, it is
// an error of kind Unavailable.
type Exceeded struct{ Reading }

// Error is GitLab's text.
func (e *Exceeded) Error() string {
	return "This endpoint has been requested too many times. Try again later."
}

// Unwrap gives it a kind.
func (e *Exceeded) Unwrap() error {
	return tidelock.Errorf(tidelock.Unavailable, "%s", e.Error())
}

func (g *Guard) refuse(surface string, r Reading) error {
	g.refused.WithLabelValues(surface, r.Name).Inc()
	return &Exceeded{r}
}

// Admit counts a request of a caller. The reading says how the caller stands,
// whether or not the error is one: then it is *Exceeded.
func (g *Guard) Admit(surface string, who Key) (Reading, error) {
	if g == nil {
		return Reading{}, nil
	}
	limiter := g.users
	if who.sort == byAddress {
		limiter = g.anonymous
	}
	if limiter == nil {
		return Reading{}, nil
	}
	r := limiter.take(who)
	if r.Wait > 0 {
		return r, g.refuse(surface, r)
	}
	return r, nil
}

// SignIn finds whose a credential is by calling lookUp, whose error of kind
// Unauthenticated means that it is no good. An address with too many of those
// gets *Exceeded in its place. A good credential still passes, because many
// people may share the address. So that guessing does not cost us a look-up
// each, those for credentials not seen before also use up what the address
// may ask anonymously; when that is gone too, they are refused unseen.
func SignIn[P any](g *Guard, surface, remote, credential string, lookUp func() (P, error)) (P, error) {
	if g == nil || g.signIns == nil || credential == "" {
		return lookUp()
	}
	from, mark := Address(remote), sha256.Sum256([]byte(credential))
	if g.anonymous != nil && !g.good.has(mark) && g.signIns.look(from).Wait > 0 {
		if r := g.anonymous.take(from); r.Wait > 0 {
			var nobody P
			return nobody, g.refuse(surface, r)
		}
	}
	who, err := lookUp()
	switch {
	case err == nil:
		g.good.add(mark)
	case tidelock.KindOf(err) == tidelock.Unauthenticated:
		g.good.remove(mark)
		if r := g.signIns.take(from); r.Wait > 0 {
			err = g.refuse(surface, r)
		}
	}
	return who, err
}

// Hold lets a caller have one more large request running until release is
// called, or says that it has too many.
func (g *Guard) Hold(surface string, who Key) (release func(), err error) {
	if g == nil {
		return func() {}, nil
	}
	if release = g.enter(g.running, g.large, who); release == nil {
		return nil, g.refuse(surface, Reading{Name: "large", Wait: time.Second})
	}
	return release, nil
}

// Wait lets a caller have one more request that only waits until release is
// called. It is false when it has too many, who then can be answered at once.
func (g *Guard) Wait(who Key) (release func(), ok bool) {
	if g == nil {
		return func() {}, true
	}
	release = g.enter(g.idle, g.waiting, who)
	return release, release != nil
}

// enter counts one more of a caller's requests in progress; nil when it has as
// many as it may.
func (g *Guard) enter(counts map[Key]int, most int, who Key) (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if counts[who] >= most {
		return nil
	}
	counts[who]++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if counts[who]--; counts[who] == 0 {
			delete(counts, who)
		}
	})
}

// mostRemembered is how many good credentials are known at a time.
const mostRemembered = 1 << 14

// remembered are hashes of credentials that were good when last used. Being
// among them opens nothing; it only spares the doubt.
type remembered struct {
	mu    sync.Mutex
	marks *simplelru.LRU[[sha256.Size]byte, struct{}]
}

func (r *remembered) has(mark [sha256.Size]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.marks != nil && r.marks.Contains(mark)
}

func (r *remembered) add(mark [sha256.Size]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.marks == nil {
		marks, err := simplelru.NewLRU[[sha256.Size]byte, struct{}](mostRemembered, nil)
		if err != nil {
			panic(err) // only a size below one is refused
		}
		r.marks = marks
	}
	r.marks.Add(mark, struct{}{})
}

func (r *remembered) remove(mark [sha256.Size]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.marks != nil {
		r.marks.Remove(mark)
	}
}
