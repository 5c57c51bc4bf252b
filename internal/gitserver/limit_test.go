package gitserver_test

import (
	"testing"

	"tidelock.dev/internal/limit"
)

func TestSSHSessionsAreLimited(t *testing.T) {
	w := newSSHWorld(t, options{limits: limit.NewGuard(limit.Config{User: 2})})
	mine, _ := w.userKey(w.maintainer)
	other, _ := w.userKey(w.developer)
	url := w.sshURL("people/site.git")
	for range 2 {
		w.sshGit(mine, ".", "ls-remote", url)
	}
	w.refusedSSHGit("too many requests; try again in ", mine, ".", "ls-remote", url)
	w.sshGit(other, ".", "ls-remote", url)
}
