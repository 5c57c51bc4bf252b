package gitlabapi

import (
	"cmp"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"tidelock.dev"
)

const (
	defaultPerPage = 20
	maxPerPage     = 100
	maxPage        = math.MaxInt32 // times maxPerPage still counts in an int64
)

// page reads which part of a list is asked for.
func (p *params) page() tidelock.Page {
	page := tidelock.Page{Number: 1, PerPage: defaultPerPage}
	if p.has("page") {
		n := p.number("page")
		if n > maxPage {
			p.note("page", "is invalid")
		}
		page.Number = int(max(1, min(n, maxPage)))
	}
	if p.has("per_page") {
		n := p.number("per_page")
		if n < 1 {
			p.note("per_page", "has a value not allowed")
		}
		page.PerPage = int(max(1, min(n, maxPerPage)))
	}
	return page
}

// cut returns the part of a whole list that a page asks for.
func cut[T any](page tidelock.Page, all []T) []T {
	from := min((page.Number-1)*page.PerPage, len(all))
	return all[from:min(from+page.PerPage, len(all))]
}

// writePage answers with one page of a list of total elements, and says in
// the headers where the others are.
func writePage[T any](a *API, w http.ResponseWriter, r *request, page tidelock.Page, items []T, total int) error {
	pages := max(1, (total+page.PerPage-1)/page.PerPage)
	h := w.Header()
	h.Set("X-Total", strconv.Itoa(total))
	h.Set("X-Total-Pages", strconv.Itoa(pages))
	links := pageHeaders(a, h, r, page, page.Number < pages)
	links = append(links, a.link(r, "first", at(page, 1)), a.link(r, "last", at(page, pages)))
	h.Set("Link", strings.Join(links, ", "))
	return ok(w, list(items))
}

// writeUncounted is writePage for lists whose length is not known, such as a
// history: more says whether another page follows.
func writeUncounted[T any](a *API, w http.ResponseWriter, r *request, page tidelock.Page, items []T, more bool) error {
	h := w.Header()
	links := pageHeaders(a, h, r, page, more)
	links = append(links, a.link(r, "first", at(page, 1)))
	h.Set("Link", strings.Join(links, ", "))
	return ok(w, list(items))
}

// pageHeaders writes what both have, and begins the Link. On the last page
// "next" is left out, or clients would ask for ever.
func pageHeaders(a *API, h http.Header, r *request, page tidelock.Page, more bool) (links []string) {
	previous, next := "", ""
	if page.Number > 1 {
		previous = strconv.Itoa(page.Number - 1)
		links = append(links, a.link(r, "prev", at(page, page.Number-1)))
	}
	if more {
		next = strconv.Itoa(page.Number + 1)
		links = append(links, a.link(r, "next", at(page, page.Number+1)))
	}
	h.Set("X-Page", strconv.Itoa(page.Number))
	h.Set("X-Per-Page", strconv.Itoa(page.PerPage))
	h.Set("X-Prev-Page", previous)
	h.Set("X-Next-Page", next)
	return links
}

// writeKeyset answers with one page of a list that goes on after an id: only
// a Link to the next page, and no totals.
func writeKeyset[T any](a *API, w http.ResponseWriter, r *request, perPage int, items []T, next url.Values) error {
	w.Header().Set("X-Per-Page", strconv.Itoa(perPage))
	if next != nil {
		next.Set("per_page", strconv.Itoa(perPage))
		w.Header().Set("Link", a.link(r, "next", next))
	}
	return ok(w, list(items))
}

// list is never null in JSON.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

func at(page tidelock.Page, number int) url.Values {
	return url.Values{"page": {strconv.Itoa(number)}, "per_page": {strconv.Itoa(page.PerPage)}}
}

// link is one element of a Link: the request's own URL with some parameters
// changed, without its credentials, and without a raw comma or semicolon,
// which clients cut at.
func (a *API) link(r *request, rel string, change url.Values) string {
	query := r.URL.Query()
	for _, name := range secretParams {
		query.Del(name)
	}
	for name, values := range change {
		query[name] = values
	}
	u := a.calledURL(r.Request)
	path := strings.NewReplacer(",", "%2C", ";", "%3B").Replace(r.URL.EscapedPath())
	return "<" + u + path + "?" + query.Encode() + `>; rel="` + rel + `"`
}

// hostPattern is what a Host may look like to be repeated in a Link.
var hostPattern = regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?$`)

// calledURL is the scheme and host that the client called, since clients warn
// of, or refuse, a Link that leads elsewhere. Forwarded headers are not
// trusted: a proxy that ends TLS has to keep the external URL's host.
func (a *API) calledURL(r *http.Request) string {
	external := url.URL{Scheme: a.url.Scheme, Host: a.url.Host}
	switch {
	case strings.EqualFold(r.Host, a.url.Host), !hostPattern.MatchString(r.Host):
		return external.String()
	case r.TLS != nil:
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// webURL is the address of a page for people, such as "group/project".
func (a *API) webURL(path ...string) string {
	return cmp.Or(a.url.JoinPath(path...).String(), "/")
}
