package ociserver

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
)

const (
	// leastRate is what a client must send on average, in bytes a second, once
	// it has taken its time.
	leastRate = 1 << 10

	// servedAtOnce is what a client must take within two idle times.
	servedAtOnce = 1 << 20
)

// A body reads the body of a request for as long as bytes keep coming.
type body struct {
	in    io.ReadCloser
	rc    *http.ResponseController
	idle  time.Duration
	set   time.Time     // when the deadline was last moved
	spent time.Duration // waiting for the client
	n     int64

	metrics *metrics
}

func (q *request) body() *body {
	return &body{in: q.r.Body, rc: http.NewResponseController(q.w), idle: q.idle, metrics: q.metrics}
}

func (b *body) Read(p []byte) (int, error) {
	start := time.Now()
	if start.Sub(b.set) >= min(b.idle/4, time.Second) {
		// The listener's limits are for requests that have none of their own.
		// A connection without deadlines is somebody's test.
		_ = b.rc.SetReadDeadline(start.Add(b.idle))
		b.set = start
	}
	n, err := b.in.Read(p)
	b.n += int64(n)
	b.metrics.received.Add(float64(n))
	b.spent += time.Since(start)
	switch {
	case err == io.EOF:
		_ = b.rc.SetReadDeadline(time.Time{})
		_ = b.rc.SetWriteDeadline(time.Now().Add(2 * b.idle)) // for the answer
	case errors.Is(err, os.ErrDeadlineExceeded), b.spent > b.idle && b.n < int64(b.spent.Seconds()*leastRate):
		err = tidelock.Errorf(tidelock.Unavailable, "the client is too slow: it sent %d bytes in %v", b.n, b.spent.Round(time.Second))
	}
	return n, err
}

// A bounded reader fails with an error of its own choice when there is more
// than it may read.
type bounded struct {
	in   io.Reader
	left int64
	full error
}

func (b *bounded) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.in.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return max(0, n-1), b.full
	}
	return n, err
}

// A patientWriter gives a client as long as it takes, if it keeps taking. It
// writes in pieces, each of which the kernel can copy from a file by itself.
type patientWriter struct {
	http.ResponseWriter
	rc   *http.ResponseController
	idle time.Duration
	sent prometheus.Counter
}

func (q *request) patient() *patientWriter {
	return &patientWriter{q.w, http.NewResponseController(q.w), q.idle, q.metrics.sent}
}

func (w *patientWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(2 * w.idle))
	n, err := w.ResponseWriter.Write(p)
	w.sent.Add(float64(n))
	return n, err
}

func (w *patientWriter) ReadFrom(src io.Reader) (n int64, err error) {
	left := int64(1<<63 - 1)
	if l, ok := src.(*io.LimitedReader); ok {
		src, left = l.R, l.N
		defer func() { l.N = left }()
	}
	for left > 0 {
		_ = w.rc.SetWriteDeadline(time.Now().Add(2 * w.idle))
		asked := min(left, servedAtOnce)
		m, err := io.Copy(w.ResponseWriter, io.LimitReader(src, asked))
		n, left = n+m, left-m
		w.sent.Add(float64(m))
		if err != nil || m < asked {
			return n, err
		}
	}
	return n, nil
}
