package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"tidelock.dev"
)

const (
	maxAnswer  = 8 << 10 // of an answer's body is kept
	maxDrain   = 64 << 10
	maxHeaders = 32 << 10 // of an answer
)

// A caller sends deliveries. It is safe for concurrent use.
type caller struct {
	timeout  time.Duration
	instance string
	agent    string // User-Agent
	strict   *http.Client
	lax      *http.Client // takes any certificate
	now      func() time.Time
}

func newCaller(guard *Guard, timeout time.Duration, instance, agent string, now func() time.Time) *caller {
	client := func(config *tls.Config) *http.Client {
		return &http.Client{
			Transport: &http.Transport{
				Proxy:                  nil, // a proxy would dial past the guard
				DialContext:            guard.Dial,
				TLSClientConfig:        config,
				TLSHandshakeTimeout:    dialTimeout,
				ForceAttemptHTTP2:      true,
				MaxIdleConns:           100,
				MaxIdleConnsPerHost:    4,
				IdleConnTimeout:        30 * time.Second,
				MaxResponseHeaderBytes: maxHeaders,
				DisableCompression:     true, // an answer is not worth a decompression bomb
			},
			// A redirect would be another receiver than the one that was named.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &caller{
		timeout: timeout, instance: instance, agent: agent, now: now,
		strict: client(&tls.Config{MinVersion: tls.VersionTLS12}),
		lax:    client(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}),
	}
}

func (c *caller) close() {
	c.strict.CloseIdleConnections()
	c.lax.CloseIdleConnections()
}

// eventNames are what X-Gitlab-Event says.
var eventNames = map[tidelock.HookKind]string{
	tidelock.HookPush:       "Push Hook",
	tidelock.HookTagPush:    "Tag Push Hook",
	tidelock.HookPipeline:   "Pipeline Hook",
	tidelock.HookDeployment: "Deployment Hook",
}

// call sends a delivery once. What went wrong is in the attempt; the
// duration says how long the receiver asks to be left alone.
func (c *caller) call(ctx context.Context, h tidelock.Hook, d tidelock.Delivery) (tidelock.Attempt, time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	a := tidelock.Attempt{At: c.now().UTC(), URL: h.ShownURL(), Request: map[string]string{}, Response: map[string]string{}}
	began := time.Now()
	req, err := c.request(ctx, h, d, a.Request)
	if err != nil {
		a.Error = "the URL cannot be called; change it"
		return a, 0
	}
	client := c.strict
	if h.SkipVerify {
		client = c.lax
	}
	resp, err := client.Do(req)
	if err != nil {
		a.Took, a.Error = time.Since(began), c.explain(ctx, err)
		return a, 0
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil {
		_, err = io.CopyN(io.Discard, resp.Body, maxDrain) // so that the connection can be used again
	}
	a.Took, a.Status = time.Since(began), resp.StatusCode
	a.Answer = strings.ToValidUTF8(string(body), string(utf8.RuneError))
	for name := range resp.Header {
		a.Response[name] = strings.ToValidUTF8(resp.Header.Get(name), string(utf8.RuneError))
	}
	if _, ok := a.Response["Set-Cookie"]; ok {
		a.Response["Set-Cookie"] = redacted
	}
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		if !a.Delivered() { // what was said counts, although the end is missing
			a.Error = c.explain(ctx, err)
		}
	case resp.StatusCode >= 300 && resp.StatusCode <= 399:
		a.Error = fmt.Sprintf("the receiver redirects with %d; hooks follow no redirect, so give the URL it leads to", resp.StatusCode)
	}
	return a, retryAfter(resp, c.now())
}

const redacted = "[REDACTED]"

// request makes the request and notes in shown its headers as people may see
// them.
func (c *caller) request(ctx context.Context, h tidelock.Hook, d tidelock.Delivery, shown map[string]string) (*http.Request, error) {
	u, err := tidelock.ParseHookURL(h.URL)
	if err != nil {
		return nil, err
	}
	user := u.User
	u.User = nil
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(d.Body))
	if err != nil {
		return nil, err
	}
	own := map[string]string{
		"Content-Type":    "application/json",
		"User-Agent":      c.agent,
		"Idempotency-Key": d.UUID,
	}
	if h.Integration == "" {
		own["X-Gitlab-Event"] = eventNames[d.Kind]
		own["X-Gitlab-Webhook-UUID"] = d.UUID
		own["X-Gitlab-Event-UUID"] = d.Event
		own["X-Gitlab-Instance"] = c.instance
	}
	maps.Copy(shown, own)
	for name, value := range own {
		req.Header.Set(name, value)
	}
	if token := h.Token.Reveal(); token != "" {
		req.Header.Set("X-Gitlab-Token", token)
		shown["X-Gitlab-Token"] = redacted
	}
	for _, header := range h.Headers {
		req.Header.Set(header.Name, header.Value.Reveal())
		shown[http.CanonicalHeaderKey(header.Name)] = redacted
	}
	if user != nil && req.Header.Get("Authorization") == "" {
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
		shown["Authorization"] = redacted
	}
	return req, nil
}

// explain says what went wrong without repeating the URL, which an error of
// net/http does.
func (c *caller) explain(ctx context.Context, err error) string {
	if e, ok := errors.AsType[*RefusedError](err); ok {
		return "the URL is blocked: " + e.Error()
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		if e.IsNotFound {
			return "the host of the URL does not exist"
		}
		return "the host of the URL could not be looked up"
	}
	timeout, _ := errors.AsType[net.Error](err)
	switch {
	case context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return "the server stopped while it was sent"
	case errors.Is(err, context.DeadlineExceeded), timeout != nil && timeout.Timeout():
		return fmt.Sprintf("no answer within %s", c.timeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the receiver closed the connection without an answer"
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the receiver's certificate is not trusted: " + e.Err.Error()
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e.Op + ": " + e.Err.Error()
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return err.Error()
}

// retryAfter reads how long a receiver that is overloaded asks to wait.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	text := resp.Header.Get("Retry-After")
	if seconds, err := strconv.ParseInt(text, 10, 32); err == nil {
		return min(max(0, time.Duration(seconds)*time.Second), maxRetryAfter)
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, at.Sub(now)), maxRetryAfter)
	}
	return 0
}
