package gitlabapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
)

// A statusError is an answer that is known in full.
type statusError struct {
	status int
	body   errorBody
	allow  []string // methods, for 405
}

func (e *statusError) Error() string {
	if text, ok := e.body.Message.(string); ok {
		return text
	}
	return e.body.Error
}

// An errorBody is GitLab's: Message from its own code, Error from the
// framework below it.
type errorBody struct {
	Message     any    `json:"message,omitempty"` // a text, or texts by attribute
	Error       string `json:"error,omitempty"`
	Description string `json:"error_description,omitempty"`
	Scope       string `json:"scope,omitempty"`
}

var (
	errNoRoute      = &statusError{status: http.StatusNotFound, body: errorBody{Error: "404 Not Found"}}
	errUnauthorized = &statusError{status: http.StatusUnauthorized, body: errorBody{Message: "401 Unauthorized"}}
	errNotFound     = &statusError{status: http.StatusNotFound, body: errorBody{Message: "404 Not found"}}
	errSudo         = &statusError{status: http.StatusForbidden, body: errorBody{Message: "403 Forbidden - sudo is not supported"}}
	errNoUser       = insufficientScope("")
	errTooLarge     = &statusError{status: http.StatusRequestEntityTooLarge, body: errorBody{Error: "413 Request Entity Too Large"}}
)

// insufficientScope is the answer to a token that lacks every scope that would
// do, or whose kind nothing would help.
func insufficientScope(need string) *statusError {
	return &statusError{status: http.StatusForbidden, body: errorBody{
		Error:       "insufficient_scope",
		Description: "The request requires higher privileges than provided by the access token.",
		Scope:       need,
	}}
}

func errMethod(allowed []string) error {
	return &statusError{status: http.StatusMethodNotAllowed, body: errorBody{Error: "405 Not Allowed"}, allow: allowed}
}

func errBadRequest(message string) error {
	return &statusError{status: http.StatusBadRequest, body: errorBody{Message: "400 Bad request - " + message}}
}

// errMissing is the 404 of one sort of thing.
func errMissing(what string) error {
	return &statusError{status: http.StatusNotFound, body: errorBody{Message: "404 " + what + " Not Found"}}
}

// missing names what was not found in GitLab's words; other errors stay.
func missing(what string, err error) error {
	if tidelock.KindOf(err) == tidelock.NotFound {
		return errMissing(what)
	}
	return err
}

// A paramError lists parameters that are missing or malformed.
type paramError struct{ wrong []string }

func (e *paramError) Error() string { return strings.Join(e.wrong, ", ") }

// answer turns any error into what the client is told.
func answer(err error, anonymous bool) *statusError {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*paramError](err); ok {
		return &statusError{status: http.StatusBadRequest, body: errorBody{Error: e.Error()}}
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return errTooLarge
	}
	if e, ok := errors.AsType[*forge.ScopeError](err); ok {
		words := make([]string, len(e.Need))
		for i, s := range e.Need {
			words[i] = string(s)
		}
		return insufficientScope(strings.Join(words, " "))
	}
	e, ok := errors.AsType[*tidelock.Error](err)
	if !ok {
		return &statusError{status: http.StatusInternalServerError, body: errorBody{Message: "500 Internal Server Error"}}
	}
	switch e.Kind {
	case tidelock.Invalid, tidelock.Conflict:
		if e.Field != "" {
			return &statusError{status: http.StatusBadRequest, body: errorBody{
				Message: map[string][]string{e.Field: {e.Message}},
			}}
		}
		if e.Kind == tidelock.Conflict {
			return &statusError{status: http.StatusConflict, body: errorBody{Message: "409 Conflict - " + e.Message}}
		}
		return &statusError{status: http.StatusBadRequest, body: errorBody{Message: "400 Bad request - " + e.Message}}
	case tidelock.Unauthenticated:
		if anonymous {
			return errUnauthorized
		}
		return &statusError{status: http.StatusUnauthorized, body: errorBody{Error: "invalid_token", Description: e.Message}}
	case tidelock.Denied:
		return &statusError{status: http.StatusForbidden, body: errorBody{Message: "403 Forbidden - " + e.Message}}
	case tidelock.NotFound:
		return &statusError{status: http.StatusNotFound, body: errorBody{Message: notFoundText(e.Message)}}
	case tidelock.TooLarge:
		return &statusError{status: http.StatusRequestEntityTooLarge, body: errorBody{Message: "413 " + e.Message}}
	case tidelock.Unavailable:
		return &statusError{status: http.StatusServiceUnavailable, body: errorBody{Message: "503 Service Unavailable - " + e.Message}}
	}
	return &statusError{status: http.StatusInternalServerError, body: errorBody{Message: "500 Internal Server Error"}}
}

// notFoundText is "404 Project Not Found" for the forge's "Project Not Found",
// and GitLab's plain text for anything less definite.
func notFoundText(message string) string {
	if strings.HasSuffix(message, " Not Found") {
		return "404 " + message
	}
	return "404 Not found"
}

func (a *API) writeError(w *tracked, r *http.Request, err error) {
	_, given, _ := credential(r)
	told := answer(err, !given)
	if e, ok := errors.AsType[*limit.Exceeded](err); ok {
		told = errTooMany(w, e)
	}
	if told.status >= http.StatusInternalServerError && r.Context().Err() != nil {
		return // it failed because the client left
	}
	if told.status >= http.StatusInternalServerError {
		a.log.ErrorContext(r.Context(), "request failed",
			"request", w.Header().Get("X-Request-Id"), "method", r.Method, "error", err)
	}
	if w.wrote {
		panic(http.ErrAbortHandler) // the only way left to say that the answer is cut short
	}
	if len(told.allow) > 0 {
		w.Header().Set("Allow", strings.Join(told.allow, ", "))
	}
	writeJSON(w, told.status, told.body)
}

// writeJSON answers with a value. Content-Type is exactly what python-gitlab
// and the runner compare with.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // fails only when the client left
	return nil
}

func ok(w http.ResponseWriter, v any) error      { return writeJSON(w, http.StatusOK, v) }
func created(w http.ResponseWriter, v any) error { return writeJSON(w, http.StatusCreated, v) }

// accepted answers a deletion, which GitLab does later and we have done.
func accepted(w http.ResponseWriter) error {
	return writeJSON(w, http.StatusAccepted, errorBody{Message: "202 Accepted"})
}

func gone(w http.ResponseWriter) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}
