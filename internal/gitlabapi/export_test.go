package gitlabapi

import (
	"maps"
	"net/http"
	"net/url"
	"slices"

	"tidelock.dev"
)

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

// Replace puts another handler behind a route.
func (a *API) Replace(method, pattern string, with func() error) {
	table := a.table()
	for i, r := range table {
		if r.method == method && r.pattern == pattern {
			table[i].handle = func(http.ResponseWriter, *request) error { return with() }
		}
	}
	a.routes = newTree(table)
}

// ReadAll reads a request's parameters in every way that handlers do, and
// returns the status of what was wrong with them, 0 for nothing.
func ReadAll(r *http.Request) int {
	in := &request{Request: r}
	err := in.read()
	if err == nil {
		for name := range in.values {
			in.text(name)
			in.number(name)
			in.flag(name)
			in.list(name)
			in.when(name)
			in.level(name)
			in.visibility(name)
			in.scopes(name)
		}
		in.page()
		in.newToken()
		err = in.err()
	}
	if err == nil {
		return 0
	}
	return answer(err, true).status
}

// CredentialOf is the secret that a request carries, whether it carries one,
// and what is wrong with how it does.
func CredentialOf(r *http.Request) (string, bool, error) {
	secret, given, err := credential(r)
	return secret.Reveal(), given, err
}

// LargeRoutes are the routes whose requests may be large, or cost much.
func LargeRoutes() []string { return slices.Collect(maps.Keys(large)) }
