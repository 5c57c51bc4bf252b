package gitrepo_test

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// BenchmarkCommit puts a commit of ten changes into a repository of 10,000
// files: as the API does it, durable and checked like a push, and by hand with
// git's plumbing and a temporary index, which syncs and checks nothing.
//
//	go test ./internal/gitrepo -run '^$' -bench Commit
func BenchmarkCommit(b *testing.B) {
	b.Run("draft and move", func(b *testing.B) {
		repo, head := tenThousandFiles(b)
		for i := 0; b.Loop(); i++ {
			changes := make([]gitrepo.Change, 10)
			for j := range changes {
				changes[j] = gitrepo.Change{Kind: gitrepo.UpdateFile, Path: benchPath(i*10 + j), Content: fmt.Appendf(nil, "%d.%d", i, j)}
			}
			draft, err := repo.Draft(b.Context(), gitrepo.NewCommit{Parent: head, Message: "x", Author: ada, Committer: ada, Changes: changes})
			if err != nil {
				b.Fatal(err)
			}
			move := gitrepo.Move{Ref: "refs/heads/main", Old: head, New: draft.ID}
			if err := repo.Move(b.Context(), gitrepo.MoveRequest{Moves: []gitrepo.Move{move}, Draft: &draft, DenyNonFastForward: true}); err != nil {
				b.Fatal(err)
			}
			if err := repo.Sync(move.Ref); err != nil {
				b.Fatal(err)
			}
			head = draft.ID
		}
	})
	b.Run("plumbing by hand", func(b *testing.B) {
		repo, head := tenThousandFiles(b)
		index := filepath.Join(b.TempDir(), "index")
		run := func(in string, args ...string) string {
			cmd := exec.CommandContext(b.Context(), "git", args...)
			cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_DIR="+repo.Path(), "GIT_INDEX_FILE="+index,
				"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=a@example.com")
			cmd.Stdin = strings.NewReader(in)
			out, err := cmd.Output()
			if err != nil {
				b.Fatalf("git %s: %v", args[0], err)
			}
			return strings.TrimSpace(string(out))
		}
		for i := 0; b.Loop(); i++ {
			run("", "read-tree", string(head))
			var entries strings.Builder
			for j := range 10 {
				blob := run(fmt.Sprintf("%d.%d", i, j), "hash-object", "-w", "--stdin")
				fmt.Fprintf(&entries, "100644 %s\t%s\n", blob, benchPath(i*10+j))
			}
			run(entries.String(), "update-index", "--index-info")
			next := run("", "commit-tree", "-m", "x", "-p", string(head), run("", "write-tree"))
			run("", "update-ref", "refs/heads/main", next, string(head))
			head = tidelock.CommitID(next)
		}
	})
}

func benchPath(i int) string {
	i = i * 7919 % 10_000
	return fmt.Sprintf("dir%02d/sub%d/file%d.yaml", i/100, i/10%10, i%10)
}

func tenThousandFiles(b *testing.B) (*gitrepo.Repo, tidelock.CommitID) {
	b.Helper()
	disk, err := gitrepo.Open(b.Context(), gitrepo.Config{Dir: b.TempDir(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		b.Fatal(err)
	}
	if err := disk.Create(b.Context(), 1, "main"); err != nil {
		b.Fatal(err)
	}
	changes := make([]gitrepo.Change, 10_000)
	for i := range changes {
		changes[i] = gitrepo.Change{Kind: gitrepo.CreateFile, Path: benchPath(i), Content: fmt.Appendf(nil, "file: %d\n", i)}
	}
	repo := disk.Repo(1)
	draft, err := repo.Draft(b.Context(), gitrepo.NewCommit{Message: "x", Author: gitrepo.Signature{When: time.Unix(1, 0)}, Committer: ada, Changes: changes})
	if err != nil {
		b.Fatal(err)
	}
	err = repo.Move(b.Context(), gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/main", New: draft.ID}}, Draft: &draft})
	if err != nil {
		b.Fatal(err)
	}
	return repo, draft.ID
}
