// Package seal keeps secrets that must be read again, such as the token of a
// webhook or the value of a CI/CD variable, from lying in the database in the
// clear. It owns the key, a file beside the database, and the form of what it
// seals; secrets that need only be compared are hashed instead.
//
//	box, err := seal.Open("/var/lib/tidelock/secret.key")
//	sealed := box.Seal("hook 7", "s3cret")
//	secret, err := box.Open("hook 7", sealed)
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const keySize = 32 // AES-256

// version is the first byte of everything sealed, so that the form may change.
const version = 1

// A Box seals and opens. It is safe for concurrent use.
type Box struct{ aead cipher.AEAD }

// New makes a box of a key of 32 bytes.
func New(key []byte) (*Box, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("the sealing key has %d bytes, not %d", len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use the sealing key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("use the sealing key: %w", err)
	}
	return &Box{aead}, nil
}

// Open makes a box of the key in a file, which is made if it does not exist.
func Open(path string) (*Box, error) {
	text, err := File(path, func() ([]byte, error) {
		key := make([]byte, keySize)
		rand.Read(key)
		return []byte(hex.EncodeToString(key) + "\n"), nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the sealing key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("read the sealing key: %q does not hold %d bytes in hexadecimal; restore it from a backup", path, keySize)
	}
	return New(key)
}

// File reads a file that holds a key. If there is none, it writes a new key,
// whole or not at all, that its owner alone may read; when another process was
// faster, its key counts.
func File(path string, create func() ([]byte, error)) ([]byte, error) {
	text, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	if text, err = create(); err != nil {
		return nil, err
	}
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	temp, err := os.CreateTemp(folder, ".new-*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(text)
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(temp.Name(), path); errors.Is(err, fs.ErrExist) {
		return os.ReadFile(path)
	} else if err != nil {
		return nil, err
	}
	dir, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	return text, errors.Join(dir.Sync(), dir.Close())
}

// Seal hides a secret. What it is for must be said again to open it, so that a
// sealed value put in another place does not open there.
func (b *Box) Seal(purpose, secret string) []byte {
	return b.aead.Seal([]byte{version}, nil, []byte(secret), []byte(purpose))
}

// Open returns what was sealed for the same purpose.
func (b *Box) Open(purpose string, sealed []byte) (string, error) {
	if len(sealed) == 0 || sealed[0] != version {
		return "", fmt.Errorf("open the sealed %s: not in a form that is known here", purpose)
	}
	secret, err := b.aead.Open(nil, nil, sealed[1:], []byte(purpose))
	if err != nil {
		return "", fmt.Errorf("open the sealed %s: it was sealed with another key, or changed", purpose)
	}
	return string(secret), nil
}
