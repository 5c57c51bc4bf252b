package tunnel

import (
	"testing"
	"time"
)

func ShortenCloseLimit(t *testing.T, d time.Duration) {
	was := closeLimit
	closeLimit = d
	t.Cleanup(func() { closeLimit = was })
}

// OpenStreams is how many streams are open.
func (s *Session) OpenStreams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}
