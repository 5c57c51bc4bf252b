package gitrepo

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"tidelock.dev"
)

// An objectKind is the type of an object, as a pack numbers it.
type objectKind byte

const (
	commitObject objectKind = 1
	treeObject   objectKind = 2
	blobObject   objectKind = 3
	tagObject    objectKind = 4
)

func (k objectKind) String() string {
	return [...]string{commitObject: "commit", treeObject: "tree", blobObject: "blob", tagObject: "tag"}[k]
}

// A pack gathers new objects for one push. They are whole, never deltas:
// Maintain packs them better later.
type pack struct {
	entries bytes.Buffer
	names   map[tidelock.CommitID]bool
}

// add puts an object in, once, and returns its name.
func (p *pack) add(kind objectKind, content []byte) (tidelock.CommitID, error) {
	hash := sha1.New()
	fmt.Fprintf(hash, "%s %d\x00", kind, len(content))
	hash.Write(content)
	id := tidelock.CommitID(hex.EncodeToString(hash.Sum(nil)))
	if p.names[id] {
		return id, nil
	}
	size := len(content)
	first := byte(kind)<<4 | byte(size&15)
	for size >>= 4; size > 0; size >>= 7 {
		p.entries.WriteByte(first | 0x80)
		first = byte(size & 0x7f)
	}
	p.entries.WriteByte(first)
	z := zlib.NewWriter(&p.entries)
	if _, err := z.Write(content); err != nil {
		return "", fmt.Errorf("compress a %s: %w", kind, err)
	}
	if err := z.Close(); err != nil {
		return "", fmt.Errorf("compress a %s: %w", kind, err)
	}
	if p.names == nil {
		p.names = map[tidelock.CommitID]bool{}
	}
	p.names[id] = true
	return id, nil
}

// encode returns the pack as git reads it; an empty one is valid too.
func (p *pack) encode() []byte {
	b := make([]byte, 0, 12+p.entries.Len()+sha1.Size)
	b = append(b, "PACK"...)
	b = binary.BigEndian.AppendUint32(b, 2)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p.names)))
	b = append(b, p.entries.Bytes()...)
	sum := sha1.Sum(b)
	return append(b, sum[:]...)
}
