package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
)

// TestTokenStaysWithItsServer is sent elsewhere: net/http would take the
// token's header along.
func TestTokenStaysWithItsServer(t *testing.T) {
	heard := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heard = heard || r.Header.Get("Private-Token") != ""
	}))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()

	s := source{URL: server.URL, Token: tidelock.NewSecret("glpat-secret"), from: "the test"}
	client, err := s.httpClient()
	if err != nil {
		t.Fatal(err)
	}
	api, err := gitlab.NewClient(s.Token.Reveal(), gitlab.WithBaseURL(s.URL), gitlab.WithHTTPClient(client), gitlab.WithCustomRetryMax(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := api.Version.GetVersion(); err == nil {
		t.Error("a redirect to another server was followed")
	}
	if heard {
		t.Error("another server was given the token")
	}
}
