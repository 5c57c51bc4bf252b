package stack

import (
	"fmt"
	"os"
	"strings"
)

// environment is a file for scripts to source. URL, token and CA in it belong
// together.
func (f Facts) environment() ([]byte, error) {
	token, err := os.ReadFile(f.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("read the administrator's token: %w", err)
	}
	var b strings.Builder
	fmt.Fprintln(&b, "# Written by tidelock-playground. Source it: the first three belong together.")
	for _, v := range []struct{ name, value string }{
		{"TIDELOCK_URL", f.URL},
		{"TIDELOCK_TOKEN", strings.TrimSpace(string(token))},
		{"TIDELOCK_CA_FILE", f.CAFile},
		{"GIT_SSL_CAINFO", f.CAFile},
		{"KUBECONFIG", f.Kubeconfig},
		{"TIDELOCK_RECEIVER_URL", f.ReceiverURL}, // for tidelock bench push
	} {
		if v.value != "" {
			fmt.Fprintf(&b, "export %s=%s\n", v.name, Quote(v.value))
		}
	}
	return []byte(b.String()), nil
}

// Quote writes text so that a shell reads exactly that text.
func Quote(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=@%+,", r)
	}
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
