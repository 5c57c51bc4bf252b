package server

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// requestIDHeader tells the client the id under which the log speaks of its
// request. Surfaces read it from their response's header.
const requestIDHeader = "X-Request-Id"

type requestIDKey struct{}

// logHandler adds the request's id to every record that is written while it
// is answered, whoever writes it.
type logHandler struct{ slog.Handler }

func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	if id, ok := ctx.Value(requestIDKey{}).(string); ok && !hasAttr(r, "request") {
		r = r.Clone()
		r.AddAttrs(slog.String("request", id))
	}
	return h.Handler.Handle(ctx, r)
}

func hasAttr(r slog.Record, key string) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == key
		return !found
	})
	return found
}

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logHandler{h.Handler.WithAttrs(attrs)}
}

func (h logHandler) WithGroup(name string) slog.Handler {
	return logHandler{h.Handler.WithGroup(name)}
}

// requestMetrics counts what the listeners answer.
type requestMetrics struct {
	inFlight *prometheus.GaugeVec
	seconds  *prometheus.HistogramVec
}

func newRequestMetrics(registry prometheus.Registerer) *requestMetrics {
	m := &requestMetrics{
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tidelock_http_requests_in_flight", Help: "Requests being answered, by surface.",
		}, []string{"surface"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tidelock_http_request_seconds",
			Help:    "Time to answer a request, by surface and class of status.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
		}, []string{"surface", "status"}),
	}
	registry.MustRegister(m.inFlight, m.seconds)
	return m
}

var statusClasses = [...]string{"other", "1xx", "2xx", "3xx", "4xx", "5xx"}

func statusClass(status int) string {
	if class := status / 100; class >= 1 && class < len(statusClasses) {
		return statusClasses[class]
	}
	return statusClasses[0]
}

// requestID is the id that the client gave the request, so that its log and
// ours can be laid side by side, if it is one and not something to fill or
// forge a log with; otherwise a new one.
func requestID(r *http.Request) string {
	given := r.Header.Get(requestIDHeader)
	if given == "" || len(given) > mostRequestID || strings.ContainsFunc(given, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' && c != '_' && c != '.'
	}) {
		return rand.Text()
	}
	return given
}

// mostRequestID has room for the forms in use, such as UUIDs.
const mostRequestID = 64

// observed wraps the routes: it gives the request an id, survives a panic,
// counts, and logs the request at debug.
func (s *Server) observed(w http.ResponseWriter, r *http.Request, surface string, next http.Handler) {
	id := requestID(r)
	w.Header().Set(requestIDHeader, id)
	ctx := context.WithValue(r.Context(), requestIDKey{}, id)
	out := &answer{ResponseWriter: w}
	start := time.Now()
	s.requests.inFlight.WithLabelValues(surface).Inc()
	defer func() {
		s.requests.inFlight.WithLabelValues(surface).Dec()
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			// The stack, never the value: it may hold what a client sent.
			s.log.ErrorContext(ctx, "handler panicked", "surface", surface, "stack", string(debug.Stack()))
			if out.status != 0 {
				panic(http.ErrAbortHandler)
			}
			http.Error(out, "internal error, request "+id, http.StatusInternalServerError)
		}
		took := time.Since(start)
		s.requests.seconds.WithLabelValues(surface, statusClass(out.status)).Observe(took.Seconds())
		if s.log.Enabled(ctx, slog.LevelDebug) {
			s.log.DebugContext(ctx, "request answered", "surface", surface, "method", r.Method,
				"path", r.URL.Path, "status", out.status, "bytes", out.bytes, "took", took, "remote", r.RemoteAddr)
		}
	}()
	next.ServeHTTP(out, r.WithContext(ctx))
	if out.status == 0 {
		out.status = http.StatusOK // nothing was written: net/http answers 200
	}
}

// An answer remembers what was sent. Flush and Hijack are reached by Unwrap.
type answer struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 || a.status < 200 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(p)
	a.bytes += int64(n)
	return n, err
}

// ReadFrom lets the kernel send a file by itself, where the connection can.
func (a *answer) ReadFrom(src io.Reader) (int64, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := io.Copy(a.ResponseWriter, src)
	a.bytes += n
	return n, err
}

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
