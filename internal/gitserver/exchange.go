package gitserver

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"tidelock.dev"
)

// An exchange is the body of one request and of its response. Either side may
// be slow, but not silent: after idle without a byte it is cut, and so is one
// that is not done by the end.
type exchange struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	body io.Reader
	idle time.Duration
	end  time.Time

	contentType string
	started     bool  // the header is sent; before, an error can still be told
	failed      error // why the request can be read no further; io.EOF at its end
	read        int64 // bytes of the request
	written     int64 // bytes of the response
}

func (s *Server) exchange(w http.ResponseWriter, r *http.Request, contentType string) *exchange {
	x := &exchange{
		w: w, rc: http.NewResponseController(w), body: r.Body,
		idle: s.idle, end: time.Now().Add(s.longest), contentType: contentType,
	}
	// The listener's limits are for requests that have none of their own.
	_ = x.rc.SetReadDeadline(x.end)
	_ = x.rc.SetWriteDeadline(time.Time{})
	return x
}

// Read reads the request as it came, compressed or not.
func (x *exchange) Read(p []byte) (int, error) {
	if x.failed != nil {
		return 0, x.failed
	}
	// A connection without deadlines is somebody's test; it just cannot be cut.
	_ = x.rc.SetReadDeadline(x.deadline())
	n, err := x.body.Read(p)
	x.read += int64(n)
	switch {
	case errors.Is(err, io.EOF):
		// The server now watches the connection for its end, without a limit.
		// After any other error the deadline stays: net/http, which tries to
		// read what is left, must not wait for it.
		_ = x.rc.SetReadDeadline(time.Time{})
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = tidelock.Errorf(tidelock.Unavailable, "the client is too slow: it sent nothing for %v, or not all in time", x.idle)
	}
	x.failed = err
	return n, err
}

func (x *exchange) answered() bool { return x.started }

func (x *exchange) moved() (in, out int64) { return x.read, x.written }

// ended is nil: a request has an end, and a client that is not heard out does
// not read why.
func (x *exchange) ended() func() { return nil }

func (x *exchange) deadline() time.Time {
	if idle := time.Now().Add(x.idle); idle.Before(x.end) {
		return idle
	}
	return x.end
}

// Write sends a part of the response at once. The first one sends the header.
func (x *exchange) Write(p []byte) (int, error) {
	x.start()
	_ = x.rc.SetWriteDeadline(x.deadline())
	n, err := x.w.Write(p)
	x.written += int64(n)
	if err == nil {
		err = x.rc.Flush()
	}
	if err == nil {
		_ = x.rc.SetWriteDeadline(time.Time{})
	}
	return n, err
}

// request returns the request's body without its compression, at most limit
// bytes of it; one more is an error of kind TooLarge.
func (x *exchange) request(r *http.Request, limit int64) (io.Reader, error) {
	var body io.Reader = x
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
		if r.ContentLength > limit {
			return nil, errTooLarge(limit)
		}
	case "gzip", "x-gzip":
		unzipped, err := gzip.NewReader(x)
		if err != nil {
			return nil, tidelock.Errorf(tidelock.Invalid, "the request says it is gzip, but is not")
		}
		body = unzipped
	default:
		return nil, tidelock.Errorf(tidelock.Invalid, "content encoding %.40q is not supported", r.Header.Get("Content-Encoding"))
	}
	return bounded(body, limit), nil
}

func errTooLarge(limit int64) error {
	return tidelock.Errorf(tidelock.TooLarge, "the request is larger than %d bytes", limit)
}

// A boundedReader is an io.LimitedReader whose limit is an error.
type boundedReader struct {
	in          io.Reader
	left, limit int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLarge(b.limit)
	}
	// One byte more than allowed tells a body that just fits from a larger one.
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.in.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return n - 1, errTooLarge(b.limit)
	}
	return n, err
}

// start sends the header. From here on both sides talk at once, as git does
// while it unpacks what still comes in.
func (x *exchange) start() {
	if x.started {
		return
	}
	x.started = true
	_ = x.rc.EnableFullDuplex() // HTTP/2 always can, and refuses to be asked
	x.w.Header().Set("Content-Type", x.contentType)
	x.w.WriteHeader(http.StatusOK)
}

// maxOverrun is how much a client may send that nobody needs any more, so
// that it comes to read why.
const maxOverrun = 32 << 20

// finish completes the response, which may be empty, and hears the client out.
// One that does not come to an end is cut: net/http cannot go on with a
// connection on which both sides talked and one is not done.
func (x *exchange) finish() {
	x.start()
	_, _ = io.CopyN(io.Discard, x, maxOverrun)
	if x.failed != io.EOF {
		panic(http.ErrAbortHandler)
	}
}
