package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/coder/websocket"

	"tidelock.dev"
)

// A DialConfig says whom to dial and how.
type DialConfig struct {
	URL    string      // required, such as "wss://forge.example/-/kubernetes-agent/"
	Header http.Header // goes with the handshake, such as Authorization
	TLS    *tls.Config // nil for the system's roots
	// Proxy chooses the HTTP proxy to dial through, as http.Transport does;
	// nil dials directly.
	Proxy func(*http.Request) (*url.URL, error)

	HeartbeatEvery time.Duration // default DefaultHeartbeat
	SilenceLimit   time.Duration // default DefaultSilence
	Log            *slog.Logger  // default none
}

// A RefusedError is a server's answer other than a tunnel. Its kind, as
// tidelock.KindOf reads it, follows the status: 401 is Unauthenticated, 403
// Denied, 404 NotFound, 429 and 5xx Unavailable.
type RefusedError struct {
	StatusCode int
	Message    string        // what the server said, shortened
	RetryAfter time.Duration // 0 when the server did not say
}

func (e *RefusedError) Error() string {
	text := fmt.Sprintf("the server answered %d %s", e.StatusCode, http.StatusText(e.StatusCode))
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

func (e *RefusedError) Unwrap() error {
	kind := tidelock.Internal
	switch {
	case e.StatusCode == http.StatusUnauthorized:
		kind = tidelock.Unauthenticated
	case e.StatusCode == http.StatusForbidden:
		kind = tidelock.Denied
	case e.StatusCode == http.StatusNotFound:
		kind = tidelock.NotFound
	case e.StatusCode == http.StatusTooManyRequests, e.StatusCode >= 500:
		kind = tidelock.Unavailable
	}
	return &tidelock.Error{Kind: kind, Message: e.Error()}
}

// Dial connects to a server. The context bounds the handshake only. An answer
// that is not a tunnel is a *RefusedError; anything else means that no answer
// came. Redirects are not followed: the token in Header is for this URL.
func Dial(ctx context.Context, c DialConfig) (*Session, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("dial tunnel: %w", err)
	}
	name := u.Redacted()
	var raw *rawConn
	dialer := net.Dialer{Timeout: 10 * time.Second}
	transport := &http.Transport{
		Proxy: c.Proxy,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			raw = newRawConn(conn)
			return raw, nil
		},
		TLSClientConfig:       clientTLS(c.TLS),
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		Protocols:             new(http.Protocols),
		DisableKeepAlives:     true, // it is for one connection
	}
	transport.Protocols.SetHTTP1(true) // WebSocket over HTTP/2 is not a thing here
	ws, resp, err := websocket.Dial(ctx, c.URL, &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader: c.Header,
	})
	if err != nil {
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
			return nil, fmt.Errorf("dial tunnel %s: %w", name, refused(resp))
		}
		return nil, fmt.Errorf("dial tunnel %s: %w", name, plainError(err))
	}
	s, err := newSession(ws, raw, true, sessionConfig{
		heartbeat: c.HeartbeatEvery, silence: c.SilenceLimit, log: c.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("dial tunnel %s: %w", name, err)
	}
	return s, nil
}

func clientTLS(c *tls.Config) *tls.Config {
	if c == nil {
		return nil
	}
	c = c.Clone()
	c.NextProtos = nil
	return c
}

func refused(resp *http.Response) error {
	e := &RefusedError{StatusCode: resp.StatusCode}
	if resp.Body != nil {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		e.Message = oneLine(string(body))
	}
	if to := resp.Header.Get("Location"); to != "" {
		e.Message = oneLine(fmt.Sprintf("it redirects to %s; give that address instead", to))
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.RetryAfter = time.Duration(min(seconds, 3600)) * time.Second
	}
	return e
}

// oneLine keeps what fits a log line of a text that a stranger wrote.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	return text
}

// plainError drops the wrapping that repeats the URL and the library's name.
func plainError(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
