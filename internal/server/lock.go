package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"tidelock.dev"
)

// A folderLock keeps a second server out of a data folder. The kernel drops it
// when the process ends, however it ends.
type folderLock struct{ file *os.File }

// lockName is the file whose lock is the folder's.
const lockName = "server.lock"

// lockFolder takes the lock or says who has it.
func lockFolder(dir string) (*folderLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the data folder: %w", err)
	}
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		holder, _ := io.ReadAll(io.LimitReader(f, 20))
		f.Close()
		return nil, tidelock.Errorf(tidelock.Conflict,
			"another server (process %s) uses %s; stop it, or give this one its own --data-dir",
			strings.TrimSpace(string(holder)), dir)
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("lock the data folder %q: %w", dir, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // only for the message above
	}
	return &folderLock{f}, nil
}

// release lets the next server in. Closing alone would not: a child that was
// forked, and is about to become another program, has the file open as well.
func (l *folderLock) release() error {
	return errors.Join(syscall.Flock(int(l.file.Fd()), syscall.LOCK_UN), l.file.Close())
}
