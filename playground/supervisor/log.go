package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// A logFile takes the output of one process. At its limit it is turned over
// once, so it and its predecessor never exceed twice the limit.
type logFile struct {
	path  string
	limit int64

	mu   sync.Mutex
	file *os.File
	size int64
}

func openLog(path string, limit int64) (*logFile, error) {
	l := &logFile{path: path, limit: limit}
	return l, l.open(os.O_APPEND)
}

func (l *logFile) open(mode int) error {
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|mode, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open log: %w", err), file.Close())
	}
	l.file, l.size = file, info.Size()
	return nil
}

// Write never fails the process that writes: a log that cannot be written is
// dropped.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil && l.size+int64(len(p)) > l.limit {
		l.turn()
	}
	if l.file != nil {
		end := p[max(0, int64(len(p))-l.limit):] // of more than fits, the last counts
		n, _ := l.file.Write(end)
		l.size += int64(n)
	}
	return len(p), nil
}

func (l *logFile) turn() {
	l.file.Close()
	l.file = nil
	_ = os.Rename(l.path, l.path+".1") // if it fails, the file is emptied below
	_ = l.open(os.O_TRUNC)
}

// tail returns the last lines, at most n bytes.
func (l *logFile) tail(n int64) []byte {
	file, err := os.Open(l.path)
	if err != nil {
		return nil
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return nil
	}
	text := make([]byte, min(n, size))
	if _, err := file.ReadAt(text, size-int64(len(text))); err != nil {
		return nil
	}
	if int64(len(text)) < size {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	return bytes.TrimSpace(text)
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
