package ociserver_test

import (
	"io"
	"net/http"
	"sync/atomic"
)

// A requestLog counts what a client sends in bodies.
type requestLog struct {
	in     http.RoundTripper
	bodies atomic.Int64
}

func (l *requestLog) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		r = r.Clone(r.Context())
		r.Body = &countedBody{r.Body, &l.bodies}
	}
	return l.in.RoundTrip(r)
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}
