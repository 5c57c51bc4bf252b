package gitlabapi_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"tidelock.dev/internal/gitlabapi"
)

// FuzzRoute routes any path: what comes out of it never climbs, is text, and
// was unescaped exactly once.
func FuzzRoute(f *testing.F) {
	for _, seed := range []string{
		"/projects/team%2Fsite", "/projects/team%252Fsite", "/projects/..%2Fx/members", "/projects//x", "/projects/%2E%2E/user", "/user/",
		"/projects/a/repository/files/%2Egitlab%2Fx%2Eyaml/raw", "/projects/%00", "/projects/%ff", "/projects/%zz", "", "/", "//", "/user",
		"/groups/a/members/all/1", "/personal_access_tokens/self", strings.Repeat("/x", 300),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		route, args := gitlabapi.RouteOf(http.MethodGet, path)
		if route == "" {
			return
		}
		for name, value := range args {
			if value == "" || strings.ContainsAny(value, "\x00\n\r\t\x7f") {
				t.Errorf("%q: %s is %q", path, name, value)
			}
			for part := range strings.SplitSeq(value, "/") {
				if part == "" || part == "." || part == ".." {
					t.Errorf("%q: %s is %q", path, name, value)
				}
			}
		}
		// The same values, escaped again, lead to the same place.
		again := ""
		for segment := range strings.SplitSeq(strings.TrimPrefix(route, "GET /"), "/") {
			if name, ok := strings.CutPrefix(segment, ":"); ok {
				segment = url.PathEscape(args[name])
			}
			again += "/" + segment
		}
		if back, values := gitlabapi.RouteOf(http.MethodGet, again); back != route || len(values) != len(args) {
			t.Errorf("%q is %s %q, but %q is %s %q", path, route, args, again, back, values)
		}
	})
}

// FuzzPage reads any pagination: what is taken can be multiplied, and what is
// not is a client's mistake, never a panic.
func FuzzPage(f *testing.F) {
	for _, seed := range []string{"", "page=2&per_page=50", "page=-1", "page=99999999999999999999", "per_page=0", "per_page=1e3", "page=2147483647&per_page=100", "page[]=1&per_page[]=2", "page=%00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		page, err := gitlabapi.ReadPage(values)
		if err != nil {
			return
		}
		if page.Number < 1 || page.PerPage < 1 || page.PerPage > 100 || (page.Number-1)*page.PerPage < 0 {
			t.Errorf("%q is %+v", query, page)
		}
	})
}

// FuzzBody reads any body of any kind: never a panic, and never an answer that
// blames us.
func FuzzBody(f *testing.F) {
	for _, seed := range [][2]string{
		{"application/json", `{"name":"a","scopes":["x"],"expires_at":"2026-01-01","access_level":30}`},
		{"application/json", `{"name":{"a":[1]},"scopes":{"x":1},"expires_at":1e400,"access_level":"x"}`},
		{"application/x-www-form-urlencoded", "name=a&scopes[]=x&scopes[]=y"},
		{"multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\na\r\n--b--\r\n"},
		{"multipart/form-data", "x"}, {"text/xml", "<a/>"}, {";;;", ""}, {"", "{"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, kind, body string) {
		r := httptest.NewRequest(http.MethodPost, "/api/v4/x", strings.NewReader(body))
		r.Header.Set("Content-Type", kind)
		if status := gitlabapi.ReadAll(r); status != 0 && (status < 400 || status >= 500) {
			t.Errorf("a body of %q answers %d", kind, status)
		}
	})
}

// FuzzCredential reads a credential from wherever a request may carry one: what
// comes out is what one of them held, of the first that is there.
func FuzzCredential(f *testing.F) {
	for _, seed := range [][3]string{
		{"glpat-a", "", ""}, {"", "Bearer glpat-a", ""}, {"", "bearer  glpat-a ", ""}, {"", "Basic YTpi", ""}, {"", "Bearer", ""},
		{"", "", "private_token=glpat-a"}, {"", "", "access_token=glpat-a&access_token=b"}, {"", "", "job_token=x"}, {"", "", "private_token=%zz"},
		{"glpat-a", "Bearer glpat-b", "private_token=glpat-c"}, {"", "Bearer glpat-b", "private_token="}, {" ", "\x00", "private_token;access_token"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, private, authorization, query string) {
		r := httptest.NewRequest(http.MethodGet, "/api/v4/user", nil)
		r.URL.RawQuery = query
		r.Header["Private-Token"], r.Header["Authorization"] = []string{private}, []string{authorization}
		secret, given, err := gitlabapi.CredentialOf(r)
		scheme, value, _ := strings.Cut(authorization, " ")
		inQuery := r.URL.Query()
		switch {
		case private != "":
			if !given || err != nil || secret != private {
				t.Errorf("the header %q gives %q, %t, %v", private, secret, given, err)
			}
		case inQuery.Get("private_token") != "":
			if !given || secret != inQuery.Get("private_token") {
				t.Errorf("the query %q gives %q, %t, %v", query, secret, given, err)
			}
		case authorization != "":
			if bearer := strings.EqualFold(scheme, "Bearer"); bearer != (err == nil) || bearer && secret != strings.TrimSpace(value) {
				t.Errorf("the authorization %q gives %q, %t, %v", authorization, secret, given, err)
			}
		case given && secret != inQuery.Get("access_token"):
			t.Errorf("the query %q gives %q", query, secret)
		}
	})
}
