package tidelock_test

import (
	"os/exec"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"tidelock.dev"
)

func TestValidRef(t *testing.T) {
	tests := []struct {
		name  tidelock.RefName
		valid bool
	}{
		{"refs/heads/main", true},
		{"refs/heads/feature/one", true},
		{"refs/heads/a/-b", true},
		{"refs/heads/@", true},
		{"refs/heads/ünïcode", true},
		{"refs/tags/v1.0.0", true},
		{"refs/notes/commits", true},
		{"refs/stash", true},
		{tidelock.BranchRef(strings.Repeat("x", 250)), true},

		{"", false},
		{"HEAD", false},
		{"main", false},
		{"@", false},
		{"refs", false},
		{"refs/", false},
		{"refs/heads/", false},
		{"refs/-x", false},
		{"refs/heads/-", false},
		{"refs/heads/--upload-pack=x", false},
		{"refs/tags/-f", false},
		{"refs/heads/HEAD", false},
		{"refs/heads/..", false},
		{"refs/heads/../../config", false},
		{"refs/heads/a..b", false},
		{"refs//heads/a", false},
		{"/refs/heads/a", false},
		{"refs/heads/a/", false},
		{"refs/heads/a.", false},
		{"refs/heads/.a", false},
		{"refs/heads/.git/config", false},
		{"refs/heads/a.lock", false},
		{"refs/heads/a.lock/b", false},
		{"refs/heads/a b", false},
		{"refs/heads/a~1", false},
		{"refs/heads/a^", false},
		{"refs/heads/a:b", false},
		{"refs/heads/a?", false},
		{"refs/heads/a*", false},
		{"refs/heads/[a", false},
		{`refs/heads/a\b`, false},
		{"refs/heads/a@{1}", false},
		{"refs/heads/a\nb", false},
		{"refs/heads/a\x00b", false},
		{"refs/heads/a\x7f", false},
		{"refs/heads/\x1b[31m", false},
		{"refs/heads/\u009b31m", false},
		{"refs/heads/\xff", false},
		{tidelock.BranchRef(strings.Repeat("x", 251)), false},
		{tidelock.BranchRef(strings.Repeat("x/", 500) + "x"), false},
	}
	for _, tt := range tests {
		err := tidelock.ValidRef(tt.name)
		if (err == nil) != tt.valid {
			t.Errorf("ValidRef(%q) = %v, want valid %t", tt.name, err, tt.valid)
		}
		if err != nil && tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("ValidRef(%q) has kind %v, want invalid", tt.name, tidelock.KindOf(err))
		}
	}
}

// FuzzValidRef holds ValidRef against git itself: it accepts nothing that git
// refuses, and refuses of what git accepts only what its comment says.
func FuzzValidRef(f *testing.F) {
	git, err := exec.LookPath("git")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		"refs/heads/main", "refs/heads/a.lock", "refs/heads/.a", "refs/heads/a..b", "refs/heads/a@{b", "@", "refs/@",
		"refs/heads/a/", "refs/heads//a", "refs/heads/-a", "refs/heads/a\x7f", "refs/heads/a b", "refs/heads/\xff", "refs/stash",
		"refs/heads/a.", "refs/heads/a./b", "refs/heads/HEAD", `refs/heads/a\b`, "refs/heads/é", "--branch", "-h",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		err := tidelock.ValidRef(tidelock.RefName(name))
		if strings.Contains(name, "\x00") || len(name) > 4000 {
			if err == nil {
				t.Fatalf("ValidRef(%.100q) = nil", name)
			}
			return
		}
		gitAccepts := strings.HasPrefix(name, "refs/") && exec.CommandContext(t.Context(), git, "check-ref-format", name).Run() == nil
		if err == nil && !gitAccepts {
			t.Fatalf("ValidRef accepts %q, git refuses it", name)
		}
		if err != nil && gitAccepts && !strings.Contains(name, "/-") && name != "refs/heads/HEAD" &&
			utf8.ValidString(name) && !strings.ContainsFunc(name, unicode.IsControl) && len(name) <= 250 {
			t.Fatalf("git accepts %q, ValidRef says: %v", name, err)
		}
	})
}
