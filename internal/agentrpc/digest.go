package agentrpc

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
)

// DigestOf hashes the last number delivered of each source, by source id.
// Sources without a delivery do not count, so that both sides agree on a
// source that only one of them knows yet.
func DigestOf(delivered map[string]int64) []byte {
	h := sha256.New()
	var n [8]byte
	for _, id := range slices.Sorted(maps.Keys(delivered)) {
		if delivered[id] == 0 {
			continue
		}
		binary.BigEndian.PutUint64(n[:], uint64(len(id)))
		h.Write(n[:])
		h.Write([]byte(id))
		binary.BigEndian.PutUint64(n[:], uint64(delivered[id]))
		h.Write(n[:])
	}
	return h.Sum(nil)
}
