package flux

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"tidelock.dev"
)

const (
	callTimeout = 3 * time.Second
	attempts    = 3 // one and two retries

	// endpointSlots bounds the calls to one endpoint at a time; a call that
	// finds no slot within slotWait does without the endpoint.
	endpointSlots = 32
	slotWait      = 250 * time.Millisecond

	// An endpoint that left breakerLimit calls in a row unanswered is left out; every
	// probeEvery one call, beside the annotation, finds out if it is back.
	breakerLimit = 3
	probeEvery   = 5 * time.Second
)

// An endpoint is one base URL of receivers, and how it has been doing.
type endpoint struct {
	base   string
	client *http.Client
	slots  chan struct{}

	mu      sync.Mutex
	misses  int // calls in a row that it did not answer
	probeAt time.Time
}

// endpoints makes endpoints, which share connections.
type endpoints struct {
	direct  *http.Client
	kube    *http.Client // with the agent's credentials
	kubeURL *url.URL
}

func newEndpoints(config *rest.Config) (*endpoints, error) {
	kubeURL, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("read the API server's address: %w", err)
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("make the API server's transport: %w", err)
	}
	return &endpoints{
		direct: &http.Client{
			Transport: &http.Transport{
				Proxy:               nil, // proxies are for the tunnel only
				DialContext:         (&net.Dialer{Timeout: callTimeout}).DialContext,
				TLSHandshakeTimeout: callTimeout,
				MaxIdleConnsPerHost: endpointSlots,
				IdleConnTimeout:     90 * time.Second,
			},
			CheckRedirect: refuseRedirect,
		},
		kube:    &http.Client{Transport: transport, CheckRedirect: refuseRedirect},
		kubeURL: kubeURL,
	}, nil
}

func refuseRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (e *endpoints) close() { e.direct.CloseIdleConnections() }

func (e *endpoints) open(u webhookURL) *endpoint {
	ep := &endpoint{base: u.base, client: e.direct, slots: make(chan struct{}, endpointSlots)}
	if u.proxied {
		ep.base, ep.client = e.kubeURL.JoinPath(u.base).String(), e.kube
	}
	return ep
}

// A statusError is an answer other than 200.
type statusError int

func (e statusError) Error() string {
	return fmt.Sprintf("the receiver answered %d %s", int(e), http.StatusText(int(e)))
}

// passing reports whether a failed call may succeed if repeated at once:
// notification-controller restarting, or not knowing the Receiver yet.
func passing(err error) bool {
	if status, ok := errors.AsType[statusError](err); ok {
		return slices.Contains([]int{400, 404, 429, 500, 502, 503, 504}, int(status))
	}
	return true
}

// silent reports whether a failure speaks of the endpoint rather than of the
// Receiver called.
func silent(err error) bool {
	if status, ok := errors.AsType[statusError](err); ok {
		return slices.Contains([]int{502, 503, 504}, int(status))
	}
	return true
}

// usable reports whether calls should go to the endpoint, and if not, whether
// this one should find out if that is still so.
func (e *endpoint) usable(now time.Time) (usable, probe bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.misses < breakerLimit {
		return true, false
	}
	if now.Before(e.probeAt) {
		return false, false
	}
	e.probeAt = now.Add(probeEvery)
	return false, true
}

func (e *endpoint) record(err error, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err == nil || !silent(err):
		e.misses = 0
	default:
		if e.misses++; e.misses == breakerLimit {
			e.probeAt = now.Add(probeEvery)
		}
	}
}

// enter waits a little for a slot; leave must follow if it returns true.
func (e *endpoint) enter(ctx context.Context) bool {
	select {
	case e.slots <- struct{}{}:
		return true
	default:
	}
	wait := time.NewTimer(slotWait)
	defer wait.Stop()
	select {
	case e.slots <- struct{}{}:
		return true
	case <-wait.C:
	case <-ctx.Done():
	}
	return false
}

func (e *endpoint) leave() { <-e.slots }

// poke calls a Receiver until it answers, at most attempts times, and reports
// when the first request left and when the last was answered.
func (e *endpoint) poke(ctx context.Context, h *hook, body []byte, key string) (o outcome) {
	o.via = ViaReceiver
	if !e.enter(ctx) {
		o.err = errors.New("the receivers' endpoint is busy")
		return o
	}
	defer e.leave()
	for o.attempts < attempts {
		if o.attempts > 0 {
			if !pause(ctx, 100*time.Millisecond<<(o.attempts-1)) {
				return o
			}
			if usable, _ := e.usable(time.Now()); !usable {
				return o // others found out meanwhile
			}
		}
		o.attempts++
		var left time.Time
		left, o.err = e.post(ctx, h, body, key)
		o.answered = time.Now()
		if o.called.IsZero() {
			o.called = left
		}
		if ctx.Err() != nil {
			return o
		}
		e.record(o.err, o.answered)
		if o.err == nil || !passing(o.err) {
			return o
		}
	}
	return o
}

// post makes one call. It returns when the request had left, the zero time if
// it never did.
func (e *endpoint) post(ctx context.Context, h *hook, body []byte, key string) (left time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var mu sync.Mutex // the transport may still write when Do has given up
	var wrote time.Time
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			mu.Lock()
			defer mu.Unlock()
			if info.Err == nil && wrote.IsZero() {
				wrote = time.Now()
			}
		},
	})
	leftAt := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return wrote
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, e.base+h.path, bytes.NewReader(body))
	if err != nil {
		return time.Time{}, fmt.Errorf("make a call: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Signature", "sha256="+sign(h.key, body))
	// Lets the transport repeat the call on a fresh connection if the kept one
	// turns out to be dead.
	request.Header.Set("Idempotency-Key", key)
	response, err := e.client.Do(request)
	if err != nil {
		// The text of a *url.Error holds the Receiver's path, which is secret
		// enough to stay out of logs.
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		return leftAt(), fmt.Errorf("call the receiver: %w", err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)); err != nil && response.StatusCode == http.StatusOK {
		return leftAt(), fmt.Errorf("read the receiver's answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return leftAt(), statusError(response.StatusCode)
	}
	return leftAt(), nil
}

func sign(key, body []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// payload is the body of a call: for people who read logs and for filters in
// Receivers, never needed by Flux.
type payload struct {
	Source  tidelock.SourceID  `json:"source"`
	Number  int64              `json:"number,omitempty"`
	Project tidelock.ProjectID `json:"project,omitempty"`
	Ref     tidelock.RefName   `json:"ref,omitempty"`
	Commit  tidelock.CommitID  `json:"commit,omitempty"`
	Digest  tidelock.Digest    `json:"digest,omitempty"`
}

func (c call) body() []byte {
	a := c.announce
	body, err := json.Marshal(payload{c.source, a.Number, a.Project, a.Ref, a.Commit, a.Digest})
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return body
}

func (c call) idempotencyKey() string {
	return strconv.Quote(string(c.source) + "/" + strconv.FormatInt(c.announce.Number, 10) + "/" + strconv.FormatUint(rand.Uint64(), 36))
}

// pause waits between half of d and d; it returns false when ctx is done.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
