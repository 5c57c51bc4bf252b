package server_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tidelock.dev/internal/server"
	"tidelock.dev/internal/servertest"
)

// TestAPINeverRedirects calls the API over plain HTTP, though its address is
// HTTPS, and by paths that a mux would clean: python-gitlab gives up on any
// redirect of a POST, and others lose their body or their token by it.
func TestAPINeverRedirects(t *testing.T) {
	s := servertest.Start(t, func(c *server.Config) { c.ExternalURL = "https://forge.example" })
	base, err := url.Parse(s.HTTPURL)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"/api/v4/projects":                       http.StatusBadRequest, // it has neither name nor path
		"/api/v4/projects/":                      http.StatusBadRequest,
		"/api/v4/projects?private_token=x":       http.StatusBadRequest,
		"/api/v4//projects":                      http.StatusNotFound,
		"//api/v4/projects":                      http.StatusNotFound,
		"/team/../api/v4/projects":               http.StatusNotFound,
		"/./api/v4/projects":                     http.StatusNotFound,
		"/api/v4/./projects":                     http.StatusNotFound,
		"/api/v4/users/../projects":              http.StatusNotFound,
		"/api/v4/projects/a%2F%2Fb/hooks":        http.StatusNotFound,
		"/api/v4/projects/a%2F..%2Fb/hooks":      http.StatusNotFound,
		"/api/v4/projects/team%2Fnone/hooks":     http.StatusNotFound,
		"/api/v4/projects/team%2Fnone//hooks":    http.StatusNotFound,
		"/api/v4/projects/team%252Fnone/hooks":   http.StatusNotFound,
		"/api/v4":                                http.StatusNotFound,
		"/api/v4/":                               http.StatusNotFound,
		"/team/none/git-upload-pack":             http.StatusNotFound,
		"/team//none.git/git-upload-pack":        http.StatusNotFound,
		"/team/../team/none.git/git-upload-pack": http.StatusNotFound,
	} {
		conn, err := net.DialTimeout("tcp", base.Host, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		kind := "application/json"
		if strings.HasSuffix(path, "/git-upload-pack") {
			kind = "application/x-git-upload-pack-request"
		}
		_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nPrivate-Token: %s\r\nContent-Length: 0\r\nContent-Type: %s\r\nConnection: close\r\n\r\n",
			path, base.Host, s.Token, kind)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		conn.Close()
		if answer.StatusCode != want {
			t.Errorf("POST %s: got %d to %q, want %d", path, answer.StatusCode, answer.Header.Get("Location"), want)
		}
	}
}
