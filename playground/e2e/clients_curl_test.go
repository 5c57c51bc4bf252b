package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/textproto"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/supervisor"
)

// A reply is what curl printed of one.
type reply struct {
	status int
	header textproto.MIMEHeader
	body   string
}

// decode reads a reply's JSON.
func (r reply) decode(t *testing.T, out any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.body), out); err != nil {
		t.Fatalf("%d %q: %v", r.status, r.body, err)
	}
}

// curl calls the forge's API with the curl of this machine, which trusts the
// forge's generated authority and nothing else.
func curl(t *testing.T, f *e2e.Forge, path string, args ...string) reply {
	t.Helper()
	address := path
	if !strings.HasPrefix(path, "https://") {
		address = f.URL + "/api/v4/" + path
	}
	args = append([]string{"--silent", "--show-error", "--max-time", "20", "--cacert", f.CAFile, "--dump-header", "-"}, append(args, address)...)
	cmd := exec.CommandContext(t.Context(), "curl", args...)
	cmd.Env = supervisor.Environment(f.Dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("curl %s: %v\n%s", path, err, out)
	}
	head, body, ok := strings.Cut(string(out), "\r\n\r\n")
	for ok && strings.Contains(strings.SplitN(head, "\r\n", 2)[0], " 100") { // 100 Continue stands before the answer
		head, body, ok = strings.Cut(body, "\r\n\r\n")
	}
	r := reply{header: textproto.MIMEHeader{}, body: body}
	lines := strings.Split(head, "\r\n")
	if _, err := fmt.Sscanf(lines[0][strings.Index(lines[0], " ")+1:], "%d", &r.status); err != nil {
		t.Fatalf("curl %s printed %q", path, out)
	}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		r.header.Add(name, strings.TrimSpace(value))
	}
	return r
}

// wantStatus fails the test unless a reply has a status.
func wantStatus(t *testing.T, what string, r reply, status int) reply {
	t.Helper()
	if r.status != status {
		t.Errorf("%s: got %d %s, want %d", what, r.status, r.body, status)
	}
	return r
}

// TestCurl drives the API as people do by hand, and as their scripts do.
func TestCurl(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true})
	p := f.Project("team/site", "private")
	p.Push("main", map[string]string{"docs/read me.md": "# Hello\n"})
	token := "PRIVATE-TOKEN: " + f.Token

	t.Run("credentials", func(t *testing.T) {
		for name, args := range map[string][]string{
			"private token":         {"user", "--header", token},
			"in small letters":      {"user", "--header", strings.Replace(token, "PRIVATE-TOKEN", "private-token", 1)},
			"bearer":                {"user", "--header", "Authorization: Bearer " + f.Token},
			"oauth2 bearer":         {"user", "--oauth2-bearer", f.Token},
			"query":                 {"user?private_token=" + f.Token},
			"access token in query": {"user?access_token=" + f.Token},
			"http/1.1":              {"user", "--http1.1", "--header", token},
			"http/2":                {"user", "--http2", "--header", token},
		} {
			var user struct{ Username string }
			wantStatus(t, name, curl(t, f, args[0], args[1:]...), 200).decode(t, &user)
			if user.Username != "root" {
				t.Errorf("%s: got user %q, want root", name, user.Username)
			}
		}
		for name, want := range map[string]string{"": "401 Unauthorized", "glpat-wrong": "invalid_token"} {
			args := []string{}
			if name != "" {
				args = []string{"--oauth2-bearer", name}
			}
			if r := wantStatus(t, "token "+name, curl(t, f, "user", args...), 401); !strings.Contains(r.body, want) {
				t.Errorf("token %q: got %s, want GitLab's %q", name, r.body, want)
			}
		}
		r := wantStatus(t, "a private project, asked for by nobody", curl(t, f, "projects/team%2Fsite"), 404)
		if !strings.Contains(r.body, "404 Project Not Found") || r.header.Get("X-Request-Id") == "" {
			t.Errorf("got %s with %v, want GitLab's words and a request id", r.body, r.header)
		}
	})

	t.Run("files", func(t *testing.T) {
		file := "projects/team%2Fsite/repository/files/docs%2Fread%20me%2Emd"
		r := wantStatus(t, "HEAD", curl(t, f, file+"?ref=main", "--head", "--header", token), 200)
		for name, want := range map[string]string{
			"X-Gitlab-File-Path": "docs/read me.md", "X-Gitlab-File-Name": "read me.md", "X-Gitlab-Size": "8", "X-Gitlab-Ref": "main",
		} {
			if got := r.header.Get(name); got != want {
				t.Errorf("HEAD: %s is %q, want %q", name, got, want)
			}
		}
		if r := wantStatus(t, "raw", curl(t, f, file+"/raw?ref=main", "--header", token), 200); r.body != "# Hello\n" {
			t.Errorf("raw: got %q", r.body)
		}
		wantStatus(t, "HEAD of what is missing", curl(t, f, "projects/team%2Fsite/repository/files/no?ref=main", "--head", "--header", token), 404)
	})

	t.Run("bodies", func(t *testing.T) {
		for name, args := range map[string][]string{
			"form":      {"--data", "visibility=internal", "--data-urlencode", "description=a & b=c", "--data", "path=form", "--data", "name=Form"},
			"multipart": {"--form", "visibility=internal", "--form", "description=a & b=c", "--form", "path=multipart", "--form", "name=Multipart"},
			"json":      {"--header", "Content-Type: application/json", "--data", `{"visibility":"internal","description":"a & b=c","path":"json","name":"JSON"}`},
		} {
			var group struct{ Path, Visibility, Description string }
			wantStatus(t, name, curl(t, f, "groups", append(args, "--header", token)...), 201).decode(t, &group)
			if group.Path != name || group.Visibility != "internal" || group.Description != "a & b=c" {
				t.Errorf("%s: made %+v", name, group)
			}
		}
		wantStatus(t, "query", curl(t, f, "groups/form?description=changed", "--request", "PUT", "--header", token), 200)
		r := wantStatus(t, "broken JSON", curl(t, f, "groups", "--header", "Content-Type: application/json", "--data", `{"name":`, "--header", token), 400)
		if strings.Contains(r.body, "unexpected") {
			t.Errorf("broken JSON: %s tells of our parser", r.body)
		}
		wantStatus(t, "delete", curl(t, f, "groups/json", "--request", "DELETE", "--header", token), 202)
		wantStatus(t, "deleted", curl(t, f, "groups/json", "--header", token), 404)
	})

	t.Run("pages", func(t *testing.T) {
		var group struct{ ID int64 }
		f.Call(http.MethodGet, "groups/team", nil, &group)
		var want []string
		for i := range 7 {
			name := fmt.Sprintf("p%d", i)
			f.Call(http.MethodPost, "projects", map[string]any{"name": name, "namespace_id": group.ID}, nil)
			want = append(want, name)
		}
		for name, first := range map[string]string{
			"offset": "groups/team/projects?order_by=id&sort=asc&per_page=3&search=p",
			"keyset": "projects?pagination=keyset&order_by=id&sort=asc&per_page=3&search=p",
		} {
			var got []string
			for next := first; next != "" && len(got) < 100; {
				r := wantStatus(t, name, curl(t, f, next, "--header", token), 200)
				var page []struct{ Path string }
				r.decode(t, &page)
				for _, p := range page {
					got = append(got, p.Path)
				}
				if next = nextLink(r.header.Get("Link")); strings.Contains(next, f.Token) {
					t.Errorf("%s: the Link has the token", name)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
		r := curl(t, f, "groups/team/projects?per_page=3&page=2&search=p", "--header", token)
		for name, want := range map[string]string{"X-Page": "2", "X-Per-Page": "3", "X-Next-Page": "3", "X-Prev-Page": "1", "X-Total": "7", "X-Total-Pages": "3"} {
			if got := r.header.Get(name); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
	})
}

var next = regexp.MustCompile(`<([^>]*)>; rel="next"`)

// nextLink is the address of the next page; "" after the last.
func nextLink(link string) string {
	if m := next.FindStringSubmatch(link); m != nil {
		return m[1]
	}
	return ""
}
