package gitrepo

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// FuzzNewPath holds newPath against git itself, with the protections of all
// file systems on: it accepts nothing that git refuses to put into an index.
func FuzzNewPath(f *testing.F) {
	for _, seed := range []string{
		"a", "a/b", ".git", ".GIT/x", "a/.git/b", "git~1", "GIT~1 .", ".git. .", ".git:x", ".git\\x", "a\\.git", "a\\git~1\\b", ".g\u200cit", "\ufeff.GIT",
		".gitmodules", ".gitignore", "..", "../a", "a/..", "./a", "a//b", "/a", "a/", "-a", "C:\\x", "con", "aux.c", ".git\u2028", ".gıt", ".ɢit", "a\\..\\b", "...",
	} {
		f.Add(seed)
	}
	dir := f.TempDir()
	run := func(args ...string) error {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_INDEX_FILE="+filepath.Join(dir, "index"))
		return cmd.Run()
	}
	if err := run("init", "-q"); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if newPath(path) != nil {
			return
		}
		_ = os.Remove(filepath.Join(dir, "index"))
		err := run("-c", "core.protectHFS=true", "-c", "core.protectNTFS=true",
			"update-index", "--add", "--cacheinfo", "100644,"+string(emptyBlob)+","+path)
		if err != nil {
			t.Errorf("newPath accepts %q, git refuses it", path)
		}
	})
}

const emptyBlob = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
