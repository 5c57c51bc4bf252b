package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
)

const (
	checkTimeout = 5 * time.Second
	leastFree    = 64 << 20 // bytes below which the disk counts as full
)

// health answers that the process runs.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}

// ready answers whether requests can be served: a line per part, without
// details, which are in the log.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	checks := []struct {
		name  string
		check func(context.Context) error
	}{
		{"running", s.checkRunning},
		{"store", s.forge.Ping},
		{"bus", func(context.Context) error { return s.bus.Healthy() }},
		{"disk", s.checkDisk},
	}
	results := make([]error, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { results[i] = c.check(ctx) })
	}
	wg.Wait()

	status := http.StatusOK
	var text strings.Builder
	for i, c := range checks {
		word := "ok"
		if err := results[i]; err != nil {
			word, status = "not ready", http.StatusServiceUnavailable
			s.log.WarnContext(ctx, "not ready", "part", c.name, "error", err)
		}
		fmt.Fprintf(&text, "%s: %s\n", c.name, word)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprint(w, text.String())
}

// checkRunning fails from the moment the server is told to stop, so that a
// balancer sends nothing new.
func (s *Server) checkRunning(context.Context) error {
	if s.stopping.Load() {
		return fmt.Errorf("the server is stopping")
	}
	return nil
}

// checkDisk finds out whether the data folder can be written, and has room.
func (s *Server) checkDisk(context.Context) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.config.DataDir, &fs); err != nil {
		return fmt.Errorf("look at the disk: %w", err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < leastFree {
		return fmt.Errorf("only %d bytes are free in the data folder", free)
	}
	f, err := os.CreateTemp(s.config.DataDir, ".probe-*")
	if err != nil {
		return fmt.Errorf("write to the data folder: %w", err)
	}
	f.Close()
	if err := os.Remove(filepath.Join(s.config.DataDir, filepath.Base(f.Name()))); err != nil {
		return fmt.Errorf("write to the data folder: %w", err)
	}
	return nil
}

// metricsForTheTrusted serves metrics to callers on this machine and to
// administrators. A request that came through a proxy is not local.
func (s *Server) metricsForTheTrusted(w http.ResponseWriter, r *http.Request) {
	if !isLocal(r) {
		secret := tidelock.NewSecret(r.Header.Get("PRIVATE-TOKEN"))
		if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
			secret = tidelock.NewSecret(bearer)
		}
		p, err := limit.SignIn(s.limits, "metrics", r.RemoteAddr, secret.Reveal(), func() (forge.Principal, error) {
			return s.forge.Authenticate(r.Context(), secret)
		})
		if err == nil {
			err = s.forge.Allow(r.Context(), p, forge.Administer, forge.OnForge)
		}
		if e, ok := errors.AsType[*limit.Exceeded](err); ok {
			e.Tell(w.Header())
			http.Error(w, e.Error(), http.StatusTooManyRequests)
			return
		}
		if err != nil {
			http.Error(w, "metrics are for administrators and local callers; see --metrics-listen", http.StatusForbidden)
			return
		}
	}
	s.metrics.ServeHTTP(w, r)
}

func isLocal(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
