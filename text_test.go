package tidelock_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"tidelock.dev"
)

func TestPrintable(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty", "", ""},
		{"plain", "kustomize build failed: a/b.yaml:3\n\tis no mapping", "kustomize build failed: a/b.yaml:3\n\tis no mapping"},
		{"fits exactly", strings.Repeat("x", 64), strings.Repeat("x", 64)},
		{"one too many", strings.Repeat("x", 65), strings.Repeat("x", 61) + "…"},
		{"cut within a rune", strings.Repeat("x", 60) + "éééé", strings.Repeat("x", 60) + "…"},
		{"control characters", "a\x00b\rc\x07d\x7fe\u0085f", "abcdef"},
		{"colours", "\x1b[31mred\x1b[0m", "red"},
		{"a title", "\x1b]0;owned\aafter", "after"},
		{"a link", "\x1b]8;;https://evil.example\x1b\\text\x1b]8;;\x1b\\", "text"},
		{"a title that never ends", "before\x1b]0;owned\nafter", "before\nafter"},
		{"a colour that never ends", "before\x1b[31", "before"},
		{"escape at the end", "before\x1b", "before"},
		{"turned direction", "safe\u202eevil\u2066x\u2069", "safeevilx"},
		{"not UTF-8", "a\xff\xc3(b", "a(b"},
		{"separators", "a\u2028b\ufeffc", "abc"},
		{"markup stays", "<script>alert(1)</script> & \u00e9", "<script>alert(1)</script> & \u00e9"},
	}
	for _, tt := range tests {
		if got := tidelock.Printable(tt.text, 64); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	if got := tidelock.Printable("abc", 1); len(got) > 3 {
		t.Errorf("tiny limit: %q", got)
	}
}

func TestWithoutPasswords(t *testing.T) {
	tests := []struct{ text, want string }{
		{"no URL, a@b", "no URL, a@b"},
		{"unable to clone 'https://flux:s3cret@forge.example/a/b': EOF", "unable to clone 'https://xxxxx@forge.example/a/b': EOF"},
		{"https://glpat-token@forge.example and oci://u:p@w@r.example:5000/x", "https://xxxxx@forge.example and oci://xxxxx@r.example:5000/x"},
		{"ssh://git@forge.example:2222/a and ssh://git:s3cret@forge.example", "ssh://git@forge.example:2222/a and ssh://xxxxx@forge.example"},
		{"https://forge.example/a@v1 https://forge.example?mail=a@b", "https://forge.example/a@v1 https://forge.example?mail=a@b"},
		{"https://u:" + strings.Repeat("x", 1<<20), "https://u:" + strings.Repeat("x", 1<<20)},
	}
	for _, tt := range tests {
		if got := tidelock.WithoutPasswords(tt.text); got != tt.want {
			t.Errorf("got %.200q, want %.200q", got, tt.want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("\x1b[31mred\x1b[0m\xff", 16)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		limit = min(max(limit, 3), 1<<12)
		got := tidelock.Printable(text, limit)
		if !utf8.ValidString(got) || len(got) > limit || strings.ContainsAny(got, "\x1b\x00\r\u202e") {
			t.Errorf("%q to %d: got %q", text, limit, got)
		}
		if again := tidelock.Printable(got, limit); again != got {
			t.Errorf("%q: once %q, twice %q", text, got, again)
		}
	})
}
