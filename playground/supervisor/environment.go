package supervisor

import (
	"os"
	"strings"
)

// Environment is what a process needs of ours: where programs and certificates
// are, and the way out. It has the given home instead of the user's, and none
// of the variables that would point it at something of the user's, such as
// KUBECONFIG.
func Environment(home string, extra ...string) []string {
	kept := map[string]bool{
		"PATH": true, "TMPDIR": true, "LANG": true, "TZ": true, "SSL_CERT_FILE": true, "SSL_CERT_DIR": true,
		"HTTP_PROXY": true, "HTTPS_PROXY": true, "NO_PROXY": true,
	}
	env := []string{"HOME=" + home}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); kept[strings.ToUpper(name)] {
			env = append(env, v)
		}
	}
	return append(env, extra...)
}
