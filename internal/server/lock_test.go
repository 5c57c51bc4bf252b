package server

import (
	"syscall"
	"testing"
)

// A child between fork and exec has every file of its parent open.
func TestReleasedFolderIsFreeAtOnce(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	inChild, err := syscall.Dup(int(lock.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(inChild)
	if _, err := lockFolder(dir); err == nil {
		t.Fatal("two servers have one folder")
	}
	if err := lock.release(); err != nil {
		t.Fatal(err)
	}
	next, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.release(); err != nil {
		t.Fatal(err)
	}
}
