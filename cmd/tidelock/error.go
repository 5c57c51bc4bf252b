package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
	"tidelock.dev/internal/server"
)

// The exit codes, as "tidelock help exit-codes" lists them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitMisused     = 2
	exitNotReady    = 3
	exitInterrupted = 130
)

// A misuse is a command line or configuration that cannot work.
type misuse struct{ text string }

func (e *misuse) Error() string { return e.text }

func misusef(format string, args ...any) error {
	return &misuse{fmt.Sprintf(format, args...)}
}

// errInterrupted is returned by commands that were told to stop before they
// were done.
var errInterrupted = errors.New("interrupted")

func exitCode(ctx context.Context, err error) int {
	if err == nil {
		return exitDone
	}
	if errors.Is(err, errInterrupted) || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return exitInterrupted
	}
	if _, ok := errors.AsType[*misuse](err); ok {
		return exitMisused
	}
	if _, ok := errors.AsType[*server.ConfigError](err); ok {
		return exitMisused
	}
	if _, ok := errors.AsType[*settingsError](err); ok {
		return exitMisused
	}
	if tidelock.KindOf(err) == tidelock.Unavailable {
		return exitNotReady
	}
	return exitFailed
}

// errorLines are what is printed of an error: one line, except that each
// problem of a configuration has its own.
func errorLines(err error) []string {
	if err == nil {
		return nil
	}
	var lines []string
	if e, ok := errors.AsType[*settingsError](err); ok {
		lines = append(lines, e.problems...)
	}
	if e, ok := errors.AsType[*server.ConfigError](err); ok {
		lines = append(lines, e.Problems...)
	}
	if lines != nil {
		return lines
	}
	return []string{strings.ReplaceAll(err.Error(), "\n", "; ")}
}

// explain turns an error of a call to the server into one that says what to
// do next. GitLab's client throws the text of a 404 away, so that the path has
// to say what was not there.
func (c *connection) explain(path string, err error) error {
	if err == nil {
		return nil
	}
	at := c.source.URL
	if u, parseErr := url.Parse(at); parseErr == nil && u.Host != "" {
		at = u.Host
	}
	if e, ok := errors.AsType[*gitlab.ErrorResponse](err); ok {
		return c.explainAnswer(e)
	}
	_, unknownCA := errors.AsType[x509.UnknownAuthorityError](err)
	_, wrongHost := errors.AsType[x509.HostnameError](err)
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	_, noSuchHost := errors.AsType[*net.DNSError](err)
	switch {
	case errors.Is(err, gitlab.ErrNotFound):
		if plain, unescapeErr := url.PathUnescape(path); unescapeErr == nil {
			path = plain
		}
		return tidelock.Errorf(tidelock.NotFound, "%q not found, or not visible with this token", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return tidelock.Errorf(tidelock.Unavailable, `no server at %s; start one with "tidelock server"`, at)
	case noSuchHost:
		return fmt.Errorf("there is no host of the name in %s; check the URL of %s", c.source.URL, c.source.from)
	case unknownCA:
		return fmt.Errorf("the certificate of %s is not trusted; give the file of its CA with %s", at, c.source.caHint())
	case wrongHost:
		return fmt.Errorf("the certificate of %s is for another name; use the server's external URL", at)
	case notTLS || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%s does not speak HTTPS; check the URL of %s", at, c.source.from)
	}
	return err
}

// explainAnswer says in a line what the server refused.
func (c *connection) explainAnswer(e *gitlab.ErrorResponse) error {
	text := answerText(e.Body)
	switch e.Response.StatusCode {
	case http.StatusUnauthorized:
		return tidelock.Errorf(tidelock.Unauthenticated, "%s does not accept the token of %s; it is wrong, expired or revoked", c.source.URL, c.source.from)
	case http.StatusForbidden:
		return tidelock.Errorf(tidelock.Denied, "not allowed: %s", strings.TrimPrefix(text, "403 Forbidden - "))
	case http.StatusNotFound:
		return tidelock.Errorf(tidelock.NotFound, "%s, or not visible with this token", strings.TrimPrefix(text, "404 "))
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return tidelock.Errorf(tidelock.Unavailable, "the server is not ready: %s; try again", text)
	}
	if e.Response.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("the server failed: %s; its log has the details under request %s", text, e.Response.Header.Get("X-Request-Id"))
	}
	return errors.New(text)
}

// answerText reads GitLab's shapes of error bodies: a text, or texts by
// attribute, under "message" or "error".
func answerText(body []byte) string {
	var answer struct {
		Message any    `json:"message"`
		Error   any    `json:"error"`
		Detail  string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "an answer that is not JSON"
	}
	for _, part := range []any{answer.Detail, answer.Message, answer.Error} {
		if text := words(part); text != "" {
			return text
		}
	}
	return "an answer without a reason"
}

func words(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		parts := make([]string, len(v))
		for i, p := range v {
			parts[i] = words(p)
		}
		return strings.Join(parts, ", ")
	case map[string]any:
		var parts []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, strings.TrimPrefix(key+" "+words(v[key]), "base "))
		}
		return strings.Join(parts, "; ")
	}
	return ""
}
