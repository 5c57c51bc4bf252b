package tidelock_test

import (
	"testing"

	"tidelock.dev"
)

func TestURLSetProjectPath(t *testing.T) {
	set, err := tidelock.ParseURLSet(
		"https://forge.example",
		"https://forge.example/",
		"https://localhost:8443",
		"http://127.0.0.1:8080/",
		"ssh://git@forge.example:2222",
		"ssh://git@alias.example",
		"https://Shared.Example/Git/",
		"https://[::1]:8443",
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		url  string
		want string // "" when it is not ours
	}{
		{"https://forge.example/team/site", "team/site"},
		{"https://forge.example/team/site.git", "team/site"},
		{"https://forge.example/team/site.git/", "team/site"},
		{"https://forge.example/team/site/", "team/site"},
		{"https://FORGE.example/Team/Site.GIT", "Team/Site"},
		{"HTTPS://forge.example:443/team/site", "team/site"},
		{"http://forge.example/team/site", "team/site"},
		{"http://forge.example:80/team/site", "team/site"},
		{"https://forge.example./team/site", "team/site"},
		{"https://user:secret@forge.example/team/site", "team/site"},
		{"https://forge.example/a/b/c/d.git", "a/b/c/d"},
		{"https://forge.example/team/s%69te", "team/site"},
		{"https://localhost:8443/team/site", "team/site"},
		{"http://127.0.0.1:8080/team/site", "team/site"},
		{"https://[::1]:8443/team/site", "team/site"},
		{"ssh://git@forge.example:2222/team/site.git", "team/site"},
		{"ssh://other@forge.example:2222/team/site.git", "team/site"},
		{"ssh://alias.example/team/site", "team/site"},
		{"ssh://git@alias.example:22/team/site", "team/site"},
		{"https://shared.example/git/team/site", "team/site"},
		{"https://shared.example/GIT/team/site.git", "team/site"},

		{"https://other.example/team/site", ""},
		{"https://forge.example:8443/team/site", ""},
		{"https://forge.example.evil/team/site", ""},
		{"https://localhost/team/site", ""},
		{"ssh://git@forge.example/team/site", ""},
		{"https://alias.example/team/site", ""},
		{"https://shared.example/team/site", ""},
		{"https://shared.example/gitteam/site", ""},
		{"https://shared.example/git", ""},
		{"https://forge.example", ""},
		{"https://forge.example/", ""},
		{"https://forge.example/site", ""},
		{"https://forge.example/.git", ""},
		{"https://forge.example/team/.git", ""},
		{"https://forge.example/team//site", ""},
		{"https://forge.example//team/site", ""},
		{"https://forge.example/team/../site", ""},
		{"https://forge.example/./team/site", ""},
		{"https://forge.example/team%2Fsite", ""},
		{"https://forge.example/team/site?x", ""},
		{"https://forge.example/team/site#x", ""},
		{"git@forge.example:team/site.git", ""},
		{"git://forge.example/team/site", ""},
		{"file:///team/site", ""},
		{"https:///team/site", ""},
		{"://", ""},
		{"", ""},
		{"https://forge.example/team/\x00", ""},
	} {
		got, ok := set.ProjectPath(test.url)
		if got != test.want || ok != (test.want != "") {
			t.Errorf("%q: got %q, %v, want %q", test.url, got, ok, test.want)
		}
	}
	if _, ok := (tidelock.URLSet{}).ProjectPath("https://forge.example/team/site"); ok {
		t.Error("the empty set matches")
	}
}

func TestParseURLSetErrors(t *testing.T) {
	for _, base := range []string{"forge.example", "ftp://forge.example", "https://", "https://x?y", "::", ""} {
		if _, err := tidelock.ParseURLSet(base); err == nil {
			t.Errorf("%q: accepted", base)
		}
	}
}
