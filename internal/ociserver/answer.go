package ociserver

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/limit"
	"tidelock.dev/internal/registry"
)

// A statusError is an error of the HTTP request itself.
type statusError struct {
	status  int
	code    registry.Code
	message string
}

func (e *statusError) Error() string { return e.message }

// unseen reports whether an error says that an image is not there, or not for
// the caller, and not that something in it is missing.
func unseen(err error) bool {
	problem, ok := errors.AsType[*registry.Problem](err)
	return !ok || problem.Code == registry.NameUnknown
}

// answers are the status and code for errors of a kind that have none of their
// own.
var answers = map[tidelock.Kind]struct {
	status int
	code   registry.Code
}{
	tidelock.Internal:        {http.StatusInternalServerError, registry.Unknown},
	tidelock.Invalid:         {http.StatusBadRequest, registry.Unsupported},
	tidelock.Unauthenticated: {http.StatusUnauthorized, registry.Unauthorized},
	tidelock.Denied:          {http.StatusForbidden, registry.Denied},
	tidelock.NotFound:        {http.StatusNotFound, registry.NameUnknown},
	tidelock.Conflict:        {http.StatusConflict, registry.Denied},
	tidelock.TooLarge:        {http.StatusRequestEntityTooLarge, registry.SizeInvalid},
	tidelock.Unavailable:     {http.StatusServiceUnavailable, registry.Unavailable},
}

// messageOf is the part of an error that users may see.
func messageOf(err error) string {
	if e, ok := errors.AsType[*tidelock.Error](err); ok {
		return e.Error()
	}
	return err.Error()
}

const (
	refusedBody = 16 << 20        // how many bytes of it drain takes
	refusedTime = 5 * time.Second // how long it takes them, if that is less than the idle time
)

// drain takes what is left of a refused body, within limits. A client that
// reads only once all is sent would never read why: closing a connection that
// has something to read resets it. Who asked before sending has sent nothing.
func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Expect") != "" {
		return
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(min(s.idle, refusedTime))); err != nil {
		return // it could last for ever
	}
	_, _ = io.CopyN(io.Discard, r.Body, refusedBody)
}

// writeError answers a request that failed before anything was answered.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	kind := tidelock.KindOf(err)
	if kind != tidelock.Unavailable { // such as too slow
		s.drain(w, r)
	}
	status, code, message := answers[kind].status, answers[kind].code, messageOf(err)
	if kind == tidelock.NotFound && unseen(err) {
		message = "there is no such image, or you may not see it"
	}
	if problem, ok := errors.AsType[*registry.Problem](err); ok {
		code = problem.Code
		switch code {
		case registry.RangeInvalid:
			status = http.StatusRequestedRangeNotSatisfiable
		case registry.TooManyRequests:
			status = http.StatusTooManyRequests
		}
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		status, code, message = e.status, e.code, e.message
	}
	if e, ok := errors.AsType[*limit.Exceeded](err); ok {
		status, code = http.StatusTooManyRequests, registry.TooManyRequests
		message = fmt.Sprintf("too many requests; try again in %v", max(e.Wait.Round(time.Second), time.Second))
		e.Tell(w.Header())
	}
	if c, ok := errors.AsType[*challenge](err); ok {
		w.Header().Set("WWW-Authenticate", c.header)
	}
	if counted := code; status != http.StatusUnauthorized {
		if kind == tidelock.TooLarge && code == registry.Denied {
			counted = overQuota
		}
		s.metrics.refused.WithLabelValues(string(counted)).Inc()
	}
	switch status {
	case http.StatusInternalServerError:
		if r.Context().Err() != nil {
			return // nobody is there to be told
		}
		id := cmp.Or(w.Header().Get("X-Request-Id"), rand.Text())
		s.log.ErrorContext(r.Context(), "request failed", "request", id, "method", r.Method, "path", r.URL.Path, "error", err)
		message = "internal error; tell your administrator the request " + id
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		if w.Header().Get("Retry-After") == "" {
			w.Header().Set("Retry-After", "5")
		}
	}
	type problem struct {
		Code    registry.Code `json:"code"`
		Message string        `json:"message"`
	}
	writeJSON(w, status, struct {
		Errors []problem `json:"errors"`
	}{[]problem{{code, message}}})
}

// writeJSON sends a whole answer; net/http leaves the body out of that to HEAD.
func writeJSON(w http.ResponseWriter, status int, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // our own structs can be marshalled
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that is gone misses nothing
}
