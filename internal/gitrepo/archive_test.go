package gitrepo

import (
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
)

var somebody = Signature{Name: "Ada", Email: "ada@example.com", When: time.Unix(1700000000, 0)}

// bigCommit puts a file into main that no pipe holds.
func bigCommit(t *testing.T, repo *Repo) tidelock.CommitID {
	t.Helper()
	noise := make([]byte, 4<<20)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	draft, err := repo.Draft(t.Context(), NewCommit{Message: "x", Author: somebody, Committer: somebody, Changes: []Change{{Kind: CreateFile, Path: "noise", Content: noise}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Move(t.Context(), MoveRequest{Moves: []Move{{Ref: "refs/heads/main", New: draft.ID}}, Draft: &draft}); err != nil {
		t.Fatal(err)
	}
	return draft.ID
}

// A client that stops reading holds one of the places and ends with its
// connection; the next one waits for a place, but not for ever.
func TestArchivesAreBounded(t *testing.T) {
	repo := newRepo(t, Config{MaxWait: 50 * time.Millisecond})
	commit := bigCommit(t, repo)
	request := ArchiveRequest{Commit: commit, Format: Tar, Prefix: "x"}
	places := cap(repo.disk.archives.free)
	if places <= 8 {
		t.Errorf("%d places: one caller, who may have 8, takes all", places)
	}
	gone := errors.New("the connection is gone")
	var clients []*io.PipeReader
	var all sync.WaitGroup
	for range places {
		client, out := io.Pipe()
		clients = append(clients, client)
		all.Go(func() {
			if err := repo.Archive(t.Context(), request, out); !errors.Is(err, gone) {
				t.Errorf("a client that left: %v", err)
			}
		})
	}
	for _, client := range clients {
		if _, err := client.Read(make([]byte, 1)); err != nil { // it has its place
			t.Fatal(err)
		}
	}
	if err := repo.Archive(t.Context(), request, io.Discard); tidelock.KindOf(err) != tidelock.Unavailable {
		t.Errorf("beyond the limit: %v, want unavailable", err)
	}
	for _, client := range clients {
		client.CloseWithError(gone)
	}
	all.Wait()
	if err := repo.Archive(t.Context(), request, io.Discard); err != nil {
		t.Errorf("after the others left: %v", err)
	}
}

// H5: nothing that is asked for becomes an option of git.
func TestH5Archive(t *testing.T) {
	repo := newRepo(t, Config{})
	commit := bigCommit(t, repo)
	for _, bad := range []ArchiveRequest{
		{Commit: "--output=x", Format: Tar},
		{Commit: tidelock.CommitID(strings.Repeat("-", 40)), Format: Tar},
		{Commit: commit, Format: "tar --exec=x"},
		{Commit: commit, Format: "tar.xz"},
		{Commit: commit, Format: Tar, Path: "../x"},
		{Commit: commit, Format: Tar, Path: ".git/config"},
	} {
		err := repo.Archive(t.Context(), bad, io.Discard)
		if kind := tidelock.KindOf(err); kind != tidelock.Invalid && kind != tidelock.NotFound {
			t.Errorf("%+v: got %v", bad, err)
		}
	}
	// A file of that name is a file.
	draft, err := repo.Draft(t.Context(), NewCommit{Parent: commit, Message: "x", Author: somebody, Committer: somebody, Changes: []Change{{Kind: CreateFile, Path: "--remote=x", Content: []byte("y")}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Move(t.Context(), MoveRequest{Moves: []Move{{Ref: "refs/heads/main", Old: commit, New: draft.ID}}, Draft: &draft}); err != nil {
		t.Fatal(err)
	}
	if err := repo.Archive(t.Context(), ArchiveRequest{Commit: draft.ID, Format: Zip, Path: "--remote=x", Prefix: "--x"}, io.Discard); err != nil {
		t.Errorf("a file like an option: %v", err)
	}
}
