package gitserver

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
)

// surface names git over HTTP to limits.
const surface = "git"

// admit finds who sends a request, and counts it. A fetch or a push is two
// requests, however large.
func (s *Server) admit(w http.ResponseWriter, r *http.Request) (forge.Principal, error) {
	credential := r.Header.Get("Authorization") + r.Header.Get("Private-Token")
	by, err := limit.SignIn(s.limits, surface, r.RemoteAddr, credential, func() (forge.Principal, error) {
		return s.authenticate(r)
	})
	if err != nil {
		return forge.Principal{}, err
	}
	reading, err := s.limits.Admit(surface, by.Allowance(r.RemoteAddr))
	reading.Tell(w.Header())
	return by, err
}

// admitSSH counts a session: a fetch or a push is one, however large.
func (s *Server) admitSSH(by forge.Principal) error {
	_, err := s.limits.Admit("ssh", by.Allowance(by.From))
	if e, ok := errors.AsType[*limit.Exceeded](err); ok {
		return tidelock.Errorf(tidelock.Unavailable, "%s", tooMany(e))
	}
	return err
}

// tooMany is what git shows its user.
func tooMany(e *limit.Exceeded) string {
	wait := max(e.Wait.Round(time.Second), time.Second)
	return fmt.Sprintf("too many requests; try again in %v", wait)
}
