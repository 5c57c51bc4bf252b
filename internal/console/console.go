// Package console is the pages that people look at. It owns templates, styles
// and browser sessions; what a page shows it asks of forge, in the name of
// whoever looks. Pages work without JavaScript and have none.
//
// A page is a struct, filled by a function named after it and rendered by a
// template of the same name.
package console

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static/console.css
var styles []byte

// Config is what a console is made of.
type Config struct {
	Forge *forge.Forge // required
	Log   *slog.Logger // required

	Limits  *limit.Guard     // default: everybody may ask as much as they like
	Root    string           // path of the external URL, such as "/tidelock"; default ""
	Host    string           // of the external URL, where clients find the registry
	Version string           // shown at the foot of each page
	Now     func() time.Time // default time.Now
}

// surface names the pages to limits.
const surface = "console"

// A Console serves pages. It expects paths without Root.
type Console struct {
	forge    *forge.Forge
	limits   *limit.Guard
	log      *slog.Logger
	root     string
	host     string
	version  string
	now      func() time.Time
	sessions sessions
	pages    *template.Template
	mux      *http.ServeMux
	stylesAt string
}

// New makes a console.
func New(c Config) (*Console, error) {
	if c.Forge == nil || c.Log == nil {
		return nil, errors.New("console: Forge and Log are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	pages, err := template.New("").Funcs(functions).ParseFS(templateFiles, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("parse templates: %w", err)
	}
	sum := sha256.Sum256(styles)
	con := &Console{
		forge: c.Forge, limits: c.Limits, log: c.Log.With("component", "console"), root: c.Root, host: c.Host, version: c.Version, now: c.Now,
		pages:    pages,
		stylesAt: "/-/static/console." + hex.EncodeToString(sum[:6]) + ".css",
	}
	con.mux = con.routes()
	return con, nil
}

func (c *Console) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", c.page(c.overview))
	mux.Handle("GET /-/sign_in", c.page(c.signInForm))
	mux.Handle("POST /-/sign_in", c.page(c.signIn))
	mux.Handle("POST /-/sign_out", c.page(c.signOut))
	mux.HandleFunc("GET "+c.stylesAt, c.serveStyles)
	mux.Handle("GET /{path...}", c.page(c.below))
	mux.Handle("/", c.page(func(http.ResponseWriter, *http.Request, forge.Principal) error { return errNoPage() }))
	return mux
}

func errNoPage() error { return tidelock.Errorf(tidelock.NotFound, "There is no page here.") }

// ServeHTTP answers with a page. A form that another site made the browser
// send is refused.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Frame-Options", "DENY")
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		c.writeError(w, r, tidelock.Errorf(tidelock.Denied, "This form was sent from another site."))
		return
	}
	c.mux.ServeHTTP(w, r)
}

// A pageFunc answers a request in the name of whoever looks. Its error becomes
// the whole answer.
type pageFunc func(http.ResponseWriter, *http.Request, forge.Principal) error

func (c *Console) page(answer pageFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
		viewer, err := c.viewer(r)
		if err == nil {
			_, err = c.limits.Admit(surface, viewer.Allowance(r.RemoteAddr))
		}
		if err == nil {
			err = answer(w, r, viewer.Via(r.RemoteAddr))
		}
		if err != nil {
			c.writeError(w, r, err)
		}
	})
}

// frame is what every page has around its content.
type frame struct {
	Title   string
	Root    string
	Styles  string
	User    string // "" when nobody is signed in
	Version string
	Refresh int // seconds after which the page is to be read again; 0 for never
}

func (c *Console) frame(title string, viewer forge.Principal) frame {
	f := frame{Title: title, Root: c.root, Styles: c.root + c.stylesAt, Version: c.version}
	if viewer.User != nil {
		f.User = viewer.User.Username
	}
	return f
}

// render writes a whole page or nothing of it.
func (c *Console) render(w http.ResponseWriter, status int, name string, page any) error {
	var text bytes.Buffer
	if err := c.pages.ExecuteTemplate(&text, name, page); err != nil {
		return fmt.Errorf("render page %q: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = text.WriteTo(w) // the reader has gone
	return nil
}

// problemPage says that a page could not be shown.
type problemPage struct {
	frame
	Message   string
	RequestID string
}

func (c *Console) writeError(w http.ResponseWriter, r *http.Request, err error) {
	id := w.Header().Get("X-Request-Id")
	page := problemPage{frame: c.frame("Not found", forge.Principal{}), Message: err.Error(), RequestID: id}
	status := http.StatusInternalServerError
	exceeded, tooMany := errors.AsType[*limit.Exceeded](err)
	switch kind := tidelock.KindOf(err); {
	case tooMany:
		exceeded.Tell(w.Header())
		status, page.Title = http.StatusTooManyRequests, "Too many requests"
	case kind == tidelock.NotFound:
		status = http.StatusNotFound
	case kind == tidelock.Invalid:
		status, page.Title = http.StatusBadRequest, "Not understood"
	case kind == tidelock.Denied, kind == tidelock.Unauthenticated:
		status, page.Title = http.StatusForbidden, "Not allowed"
	default:
		if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
			return // nobody waits for an answer
		}
		c.log.ErrorContext(r.Context(), "page failed", "path", r.URL.Path, "error", err)
		page.Title, page.Message = "Something went wrong", "The server could not show this page. Its log has the details."
	}
	if err := c.render(w, status, "problem", page); err != nil {
		c.log.ErrorContext(r.Context(), "page failed", "path", r.URL.Path, "error", err)
		http.Error(w, page.Message, status)
	}
}

func (c *Console) serveStyles(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable") // the name holds its hash
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(styles))
}

// redirect sends the browser to a page of ours after a form.
func (c *Console) redirect(w http.ResponseWriter, r *http.Request, path string) {
	http.Redirect(w, r, c.root+"/"+strings.TrimPrefix(path, "/"), http.StatusSeeOther)
}
