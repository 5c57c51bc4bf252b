package seal_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tidelock.dev/internal/seal"
)

func open(t *testing.T, path string) *seal.Box {
	t.Helper()
	box, err := seal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

func TestSeal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret.key")
	box := open(t, path)
	sealed := box.Seal("hook 7", "s3cret")
	if bytes.Contains(sealed, []byte("s3cret")) {
		t.Fatal("the secret can be read in its sealed form")
	}
	if again := box.Seal("hook 7", "s3cret"); bytes.Equal(sealed, again) {
		t.Error("two seals of one secret are the same")
	}
	if got, err := open(t, path).Open("hook 7", sealed); err != nil || got != "s3cret" {
		t.Errorf("after a restart: got %q, %v", got, err)
	}
	if got, err := box.Open("hook 8", sealed); err == nil {
		t.Errorf("for another purpose: got %q", got)
	}
	if got, err := open(t, filepath.Join(t.TempDir(), "other.key")).Open("hook 7", sealed); err == nil {
		t.Errorf("with another key: got %q", got)
	}
	for i := range sealed {
		bent := bytes.Clone(sealed)
		bent[i] ^= 1
		if got, err := box.Open("hook 7", bent); err == nil {
			t.Errorf("with byte %d changed: got %q", i, got)
		}
	}
	for _, short := range [][]byte{nil, {}, {1}, sealed[:20]} {
		if _, err := box.Open("hook 7", short); err == nil {
			t.Errorf("%d bytes opened", len(short))
		}
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret.key")
	var wait sync.WaitGroup
	boxes := make([]*seal.Box, 8)
	for i := range boxes {
		wait.Go(func() { boxes[i], _ = seal.Open(path) })
	}
	wait.Wait()
	sealed := boxes[0].Seal("x", "y")
	for _, box := range boxes {
		if got, err := box.Open("x", sealed); err != nil || got != "y" {
			t.Fatalf("two that start at once have different keys: %q, %v", got, err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("got mode %v, %v, want 0600", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("not a key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.Open(path); err == nil || !strings.Contains(err.Error(), "backup") || strings.Contains(err.Error(), "not a key") {
		t.Errorf("a broken key: got %v", err)
	}
}
