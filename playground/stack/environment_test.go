package stack

import (
	"os/exec"
	"testing"
)

// Whatever a path holds, a shell reads back.
func TestQuote(t *testing.T) {
	for _, text := range []string{
		"", "plain", "/a/b.c_d-e", "two words", "it's", "$HOME `id` \"x\" \\", "line\nline", "ünïcode", "*", "~", "a;b", "-n",
	} {
		out, err := exec.Command("sh", "-c", "printf %s "+Quote(text)).Output()
		if err != nil || string(out) != text {
			t.Errorf("a shell reads %q as %q, error %v", text, out, err)
		}
	}
	if got := Quote("https://localhost:1/a.git"); got != "https://localhost:1/a.git" {
		t.Errorf("a plain text is quoted: %s", got)
	}
}
