package console

import (
	"crypto/rand"
	"crypto/sha256"
	"net/http"
	"strings"
	"sync"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
)

const (
	sessionCookie = "__Host-tidelock" // the prefix makes browsers insist on Secure and no Domain
	sessionLife   = 12 * time.Hour
	sessionLimit  = 10_000
)

// sessions are the browsers that are signed in. They live in memory: after a
// restart people sign in again.
type sessions struct {
	mu   sync.Mutex
	live map[[sha256.Size]byte]session // by hash of the cookie's value
}

// A session stands for a token, which is checked again for every page.
type session struct {
	token   tidelock.Secret
	expires time.Time
}

// begin makes a session and returns the value for its cookie.
func (s *sessions) begin(token tidelock.Secret, now time.Time) string {
	id := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live == nil {
		s.live = map[[sha256.Size]byte]session{}
	}
	if len(s.live) >= sessionLimit {
		s.makeRoom(now)
	}
	s.live[sha256.Sum256([]byte(id))] = session{token, now.Add(sessionLife)}
	return id
}

// makeRoom drops what has expired or, if nothing has, the oldest.
func (s *sessions) makeRoom(now time.Time) {
	var oldest [sha256.Size]byte
	var earliest time.Time
	for hash, session := range s.live {
		if !now.Before(session.expires) {
			delete(s.live, hash)
		} else if earliest.IsZero() || session.expires.Before(earliest) {
			oldest, earliest = hash, session.expires
		}
	}
	if len(s.live) >= sessionLimit {
		delete(s.live, oldest)
	}
}

func (s *sessions) find(id string, now time.Time) (session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hash := sha256.Sum256([]byte(id))
	found, ok := s.live[hash]
	if ok && !now.Before(found.expires) {
		delete(s.live, hash)
		return session{}, false
	}
	return found, ok
}

func (s *sessions) end(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, sha256.Sum256([]byte(id)))
}

// viewer finds who looks. A session whose token is no longer good is nobody's.
func (c *Console) viewer(r *http.Request) (forge.Principal, error) {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return forge.Principal{}, nil
	}
	found, ok := c.sessions.find(cookie.Value, c.now())
	if !ok {
		return forge.Principal{}, nil
	}
	p, err := c.authenticate(r, found.token)
	if tidelock.KindOf(err) == tidelock.Unauthenticated || tidelock.KindOf(err) == tidelock.Denied {
		c.sessions.end(cookie.Value)
		return forge.Principal{}, nil
	}
	return p, err
}

// authenticate takes tokens of users that may read the API: pages show what
// it shows.
func (c *Console) authenticate(r *http.Request, token tidelock.Secret) (forge.Principal, error) {
	p, err := limit.SignIn(c.limits, surface, r.RemoteAddr, token.Reveal(), func() (forge.Principal, error) {
		return c.forge.Authenticate(r.Context(), token)
	})
	if err != nil {
		return forge.Principal{}, err
	}
	if p.User == nil {
		return forge.Principal{}, tidelock.Errorf(tidelock.Denied, "A deploy token cannot sign in. Use a personal access token.")
	}
	if !p.Token.Has(tidelock.ScopeAPI, tidelock.ScopeReadAPI) {
		return forge.Principal{}, tidelock.Errorf(tidelock.Denied, "This token cannot read the API. It needs the scope read_api or api.")
	}
	return p, nil
}

// signInPage asks for a token.
type signInPage struct {
	frame
	Problem string
}

func (c *Console) signInForm(w http.ResponseWriter, r *http.Request, viewer forge.Principal) error {
	if viewer.User != nil {
		c.redirect(w, r, "/")
		return nil
	}
	return c.render(w, http.StatusOK, "sign_in", signInPage{frame: c.frame("Sign in", viewer)})
}

func (c *Console) signIn(w http.ResponseWriter, r *http.Request, viewer forge.Principal) error {
	if err := r.ParseForm(); err != nil {
		return tidelock.Errorf(tidelock.Invalid, "The form could not be read.")
	}
	token := tidelock.NewSecret(strings.TrimSpace(r.PostForm.Get("token")))
	p, err := c.authenticate(r, token)
	switch tidelock.KindOf(err) {
	case tidelock.Unauthenticated, tidelock.Denied:
		if err != nil {
			page := signInPage{frame: c.frame("Sign in", viewer), Problem: err.Error()}
			return c.render(w, http.StatusUnauthorized, "sign_in", page)
		}
	}
	if err != nil {
		return err
	}
	c.log.InfoContext(r.Context(), "signed in", "user", p.User.ID, "token", p.Token.ID)
	c.setCookie(w, c.sessions.begin(token, c.now()), int(sessionLife.Seconds()))
	c.redirect(w, r, "/")
	return nil
}

func (c *Console) signOut(w http.ResponseWriter, r *http.Request, _ forge.Principal) error {
	if cookie, err := r.Cookie(sessionCookie); err == nil {
		c.sessions.end(cookie.Value)
	}
	c.setCookie(w, "", -1)
	c.redirect(w, r, "/")
	return nil
}

func (c *Console) setCookie(w http.ResponseWriter, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookie, Value: value, Path: "/", MaxAge: maxAge,
		HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode,
	})
}
