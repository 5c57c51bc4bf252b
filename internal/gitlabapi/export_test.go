package gitlabapi

import (
	"net/http"
	"net/url"

	"tidelock.dev"
)

// Routes lists the route table as "METHOD /pattern".
func Routes() []string {
	var routes []string
	for _, r := range (&API{}).table() {
		routes = append(routes, r.method+" "+r.pattern)
	}
	return routes
}

// RouteOf names the route of a request, "" for none.
func RouteOf(method, escaped string) (string, map[string]string) {
	r, args, err := newTree((&API{}).table()).find(method, escaped)
	if err != nil {
		return "", nil
	}
	return r.method + " " + r.pattern, args
}

// ReadPage reads the pagination of a query.
func ReadPage(query url.Values) (tidelock.Page, error) {
	p := params{values: map[string]any{}}
	p.addForm(query)
	page := p.page()
	return page, p.err()
}

// PanicOn makes every request to the route panic.
func (a *API) PanicOn(method, pattern string, with any) {
	table := a.table()
	for i, r := range table {
		if r.method == method && r.pattern == pattern {
			table[i].handle = func(http.ResponseWriter, *request) error { panic(with) }
		}
	}
	a.routes = newTree(table)
}
