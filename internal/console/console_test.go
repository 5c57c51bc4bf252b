package console_test

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/servertest"
)

// A browser keeps cookies and follows redirects.
type browser struct {
	t      *testing.T
	server *servertest.Server
	client *http.Client
}

func newBrowser(t *testing.T, s *servertest.Server) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &browser{t, s, &http.Client{Transport: s.Client().Transport, Jar: jar}}
}

func (b *browser) do(r *http.Request) servertest.Response {
	b.t.Helper()
	answer, err := b.client.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer answer.Body.Close()
	var text strings.Builder
	if _, err := io.Copy(&text, answer.Body); err != nil {
		b.t.Fatal(err)
	}
	return servertest.Response{Status: answer.StatusCode, Header: answer.Header, Body: text.String()}
}

func (b *browser) get(path string) servertest.Response {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, b.server.URL+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(r)
}

func (b *browser) post(path string, form url.Values, header ...string) servertest.Response {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, b.server.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return b.do(r)
}

func (b *browser) signIn(token string) servertest.Response {
	b.t.Helper()
	return b.post("/-/sign_in", url.Values{"token": {token}})
}

func TestEveryoneSeesWhatTheyMay(t *testing.T) {
	s := servertest.Start(t)
	open := s.Project("team/open", tidelock.Public)
	inner := s.Project("team/inner", tidelock.InternalOnly)
	secret := s.Project("team/secret", tidelock.Private)
	for _, p := range []*servertest.Project{open, inner, secret} {
		p.Push("main", "app.yaml", p.Path)
	}
	secret.Agent("production")
	ada, bob := s.User("ada"), s.User("bob")
	secret.Member(ada, tidelock.Developer)

	for _, tc := range []struct {
		name, token string
		shown       []string
		hidden      []string
	}{
		{"anonymous", "", []string{"team/open"}, []string{"team/inner", "team/secret", "production", "root"}},
		{"signed in", bob.Token, []string{"team/open", "team/inner", "root"}, []string{"team/secret", "production"}},
		{"member", ada.Token, []string{"team/open", "team/inner", "team/secret", "production", "not connected"}, nil},
		{"administrator", s.Token, []string{"team/secret", "production", "0 of 1 connected"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBrowser(t, s)
			if tc.token != "" {
				b.signIn(tc.token)
			}
			page := b.get("/")
			if page.Status != http.StatusOK {
				t.Fatalf("got %d %s", page.Status, page.Body)
			}
			main := page.Body[strings.Index(page.Body, "<main"):]
			for _, want := range tc.shown {
				if !strings.Contains(main, want) {
					t.Errorf("%q is not shown", want)
				}
			}
			for _, not := range tc.hidden {
				if strings.Contains(main, not) {
					t.Errorf("%q is shown", not)
				}
			}
		})
	}
}

func TestSession(t *testing.T) {
	s := servertest.Start(t)
	ada := s.User("ada")
	b := newBrowser(t, s)

	if got := b.signIn("glpat-wrong"); got.Status != http.StatusUnauthorized || !strings.Contains(got.Body, `role="alert"`) {
		t.Errorf("wrong token: got %d", got.Status)
	}
	weak := s.PersonalToken(ada.ID, tidelock.ScopeReadRepository)
	if got := b.signIn(weak); got.Status != http.StatusUnauthorized || !strings.Contains(got.Body, "read_api") {
		t.Errorf("token that cannot read the API: got %d", got.Status)
	}
	if got := b.get("/"); strings.Contains(got.Body, "Sign out") {
		t.Fatal("signed in with a bad token")
	}

	if got := b.signIn(ada.Token); !strings.Contains(got.Body, "Signed in as <bdi>ada</bdi>") {
		t.Fatalf("got %d %s", got.Status, got.Body)
	}
	if got := b.get("/-/sign_in"); strings.Contains(got.Body, "<label") {
		t.Error("asks again who is signed in already")
	}
	raw := s.Do(http.MethodPost, "/-/sign_in", "", strings.NewReader("token="+ada.Token), "Content-Type", "application/x-www-form-urlencoded")
	cookie := raw.Header.Get("Set-Cookie")
	for _, want := range []string{"__Host-tidelock=", "HttpOnly", "Secure", "SameSite=Lax", "Path=/", "Max-Age="} {
		if !strings.Contains(cookie, want) {
			t.Errorf("cookie %q has no %s", regexp.MustCompile(`=\w{26}`).ReplaceAllString(cookie, "=…"), want)
		}
	}
	if strings.Contains(cookie, ada.Token) {
		t.Error("the cookie holds the token")
	}

	b.post("/-/sign_out", nil)
	if got := b.get("/"); strings.Contains(got.Body, "Sign out") {
		t.Error("still signed in after signing out")
	}
	b.signIn(ada.Token)
	s.Call(ada.Token, http.MethodDelete, "personal_access_tokens/self", nil, nil)
	if got := b.get("/"); got.Status != http.StatusOK || strings.Contains(got.Body, "Sign out") {
		t.Errorf("got %d, want a revoked token to end its sessions", got.Status)
	}
}

func TestFormsOfOtherSitesAreRefused(t *testing.T) {
	s := servertest.Start(t)
	b := newBrowser(t, s)
	b.signIn(s.Token)
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"},
		{"Origin", "https://evil.example"},
	} {
		if got := b.post("/-/sign_out", nil, header...); got.Status != http.StatusForbidden {
			t.Errorf("%q: got %d, want 403", header, got.Status)
		}
	}
	if got := b.get("/"); !strings.Contains(got.Body, "Sign out") {
		t.Error("another site signed us out")
	}
}

func TestHostileNamesAreHarmless(t *testing.T) {
	s := servertest.Start(t)
	site := s.Project("team/site", tidelock.Public)
	s.Call(s.Token, http.MethodPut, "projects/team%2Fsite", map[string]string{
		"description": "<script>alert(1)</script>\x1b[2J \u202egnp.exe\u2066 \u200b\"onmouseover=\"x",
	}, nil)
	site.Push("main", "a", "b")
	site.MustGit("push", "--quiet", "origin", `main:refs/heads/<img/src=x>'"&`, "main:refs/tags/\u202etxt")

	b := newBrowser(t, s)
	b.signIn(s.Token)
	page := b.get("/").Body
	for _, not := range []string{"<script", "<img", "\x1b", "\u202e", "\u2066", "\u200b", `"onmouseover`} {
		if strings.Contains(page, not) {
			t.Errorf("%q reached the page", not)
		}
	}
	for _, want := range []string{"&lt;script&gt;", "&lt;img/src=x&gt;", "\ufffd[2J", "\ufffdtxt"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not shown", want)
		}
	}
}

func TestPagesAskNothingOfOthers(t *testing.T) {
	s := servertest.Start(t)
	b := newBrowser(t, s)
	for _, path := range []string{"/", "/-/sign_in", "/no/such/page"} {
		page := b.get(path)
		csp := page.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "script-src") {
			t.Errorf("%s: got policy %q", path, csp)
		}
		for _, not := range []string{"<script", "style=", "onclick", "http://", "https://"} {
			if strings.Contains(page.Body, not) {
				t.Errorf("%s holds %q", path, not)
			}
		}
		if page.Header.Get("X-Frame-Options") != "DENY" || page.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: got headers %v", path, page.Header)
		}
	}
	styles := regexp.MustCompile(`href="(/-/static/[^"]+)"`).FindStringSubmatch(b.get("/").Body)
	if styles == nil {
		t.Fatal("the page has no styles")
	}
	got := b.get(styles[1])
	if got.Status != http.StatusOK || got.Header.Get("Content-Type") != "text/css; charset=utf-8" {
		t.Errorf("styles: got %d %v", got.Status, got.Header)
	}
}

func TestMissingPage(t *testing.T) {
	s := servertest.Start(t)
	got := newBrowser(t, s).get("/<script>/nothing")
	if got.Status != http.StatusNotFound || !strings.Contains(got.Body, "There is no page here.") {
		t.Errorf("got %d %s", got.Status, got.Body)
	}
	if id := got.Header.Get("X-Request-Id"); !strings.Contains(got.Body, id) {
		t.Errorf("the page does not name request %q", id)
	}
}
