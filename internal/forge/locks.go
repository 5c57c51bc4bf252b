package forge

import "sync"

// locks serialize what concerns one and the same key. The zero value is ready.
type locks[K comparable] struct {
	mu   sync.Mutex
	held map[K]*sharedLock
}

type sharedLock struct {
	mu    sync.Mutex
	users int // that hold it or wait for it
}

func (l *locks[K]) lock(key K) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[K]*sharedLock{}
	}
	s := l.held[key]
	if s == nil {
		s = &sharedLock{}
		l.held[key] = s
	}
	s.users++
	l.mu.Unlock()

	s.mu.Lock()
	return func() {
		s.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(l.held, key)
		}
	}
}
