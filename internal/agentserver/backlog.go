package agentserver

import "sync"

const (
	maxBacklog   = 100_000 // that wait to be written
	backlogBatch = 500     // in one transaction
)

// A backlog holds what waits to be written, oldest first. What is put under
// one key is one write of the newest.
type backlog[K comparable, V any] struct {
	key func(V) K

	mu      sync.Mutex
	pending map[K]V
	order   []K
	writing []V
}

func newBacklog[K comparable, V any](key func(V) K) *backlog[K, V] {
	return &backlog[K, V]{key: key, pending: map[K]V{}}
}

// put adds a value. When too many wait, the oldest is dropped.
func (b *backlog[K, V]) put(v V) (dropped bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := b.key(v)
	if _, waits := b.pending[key]; !waits {
		if len(b.order) >= maxBacklog {
			delete(b.pending, b.order[0])
			b.order = b.order[1:]
			dropped = true
		}
		b.order = append(b.order, key)
	}
	b.pending[key] = v
	return dropped
}

func (b *backlog[K, V]) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.order)
}

// unwritten lists what may not be in the store yet, oldest first.
func (b *backlog[K, V]) unwritten(which func(V) bool) (list []V) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.writing {
		if which(v) {
			list = append(list, v)
		}
	}
	for _, key := range b.order {
		if v := b.pending[key]; which(v) {
			list = append(list, v)
		}
	}
	return list
}

// write saves the oldest batch, if anything waits. What could not be saved
// waits again, unless something newer does.
func (b *backlog[K, V]) write(save func([]V) error) error {
	batch := b.take()
	if len(batch) == 0 {
		return nil
	}
	err := save(batch)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writing = nil
	if err == nil {
		return nil
	}
	var order []K
	for _, v := range batch {
		key := b.key(v)
		if _, waits := b.pending[key]; !waits {
			b.pending[key] = v
			order = append(order, key)
		}
	}
	b.order = append(order, b.order...)
	return err
}

func (b *backlog[K, V]) take() []V {
	b.mu.Lock()
	defer b.mu.Unlock()
	keys := b.order[:min(len(b.order), backlogBatch)]
	for _, key := range keys {
		b.writing = append(b.writing, b.pending[key])
		delete(b.pending, key)
	}
	if b.order = b.order[len(keys):]; len(b.order) == 0 {
		b.order = nil
	}
	return b.writing
}
