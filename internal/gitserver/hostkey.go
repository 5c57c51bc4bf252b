package gitserver

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/ssh"

	"tidelock.dev/internal/seal"
)

// OpenHostKey reads the private key by which clients know the server over SSH,
// from a file that is made if it does not exist.
func OpenHostKey(path string) (ssh.Signer, error) {
	text, err := seal.File(path, newHostKey)
	if err != nil {
		return nil, fmt.Errorf("read the SSH host key: %w", err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("read the SSH host key in %q: %w; restore it from a backup, or remove it and tell everybody", path, err)
	}
	return key, nil
}

func newHostKey() ([]byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "tidelock")
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}

// ciphers leaves out ChaCha20, which OpenSSH prefers and Go does in software:
// packs would take twice as long. Every client of the last ten years can do
// AES-GCM.
var ciphers = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherAES128CTR, ssh.CipherAES192CTR, ssh.CipherAES256CTR}
