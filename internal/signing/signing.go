// Package signing owns the key pair by which this server signs artifacts, and
// the form of a signature, which is that of cosign 2: Flux's
// OCIRepository.spec.verify and cosign itself read it. It knows no registry:
// Sign gives what is to be pushed, and Verify is given what was pulled.
//
//	signer, err := signing.Open("/var/lib/tidelock/signing")
//	signature, err := signer.Sign("localhost:8443/team/shop", subject, nil)
//	verified, err := signing.Verify(keys, digest, signature.Manifest, blob)
package signing

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"tidelock.dev"
)

// Files of the folder. The private key is as plain as the server's other keys:
// what would seal it lies in the folder above.
const (
	keyFile     = "cosign.key"
	retiredFile = "retired.pub"
)

// A PublicKey is what a signature is verified with.
type PublicKey struct {
	ID        string    // the SHA-256 of its DER form, in hexadecimal
	RetiredAt time.Time // when it signed for the last time; zero for the key in use
	key       *ecdsa.PublicKey
}

// PEM is the key as files and Flux's Secrets hold it.
func (k PublicKey) PEM() string {
	der, err := x509.MarshalPKIXPublicKey(k.key)
	if err != nil {
		panic(err) // the curve is P-256: newPublicKey has seen it
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func newPublicKey(key *ecdsa.PublicKey) (PublicKey, error) {
	if key.Curve != elliptic.P256() {
		return PublicKey{}, tidelock.Errorf(tidelock.Invalid, "the key is of the curve %s; only P-256 is known here", key.Curve.Params().Name)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return PublicKey{}, tidelock.Errorf(tidelock.Invalid, "the key is not a point of its curve")
	}
	sum := sha256.Sum256(der)
	return PublicKey{ID: hex.EncodeToString(sum[:]), key: key}, nil
}

// Bounds of a file of public keys.
const (
	maxKeyFile = 64 << 10
	maxKeys    = 32
)

// ParsePublicKeys reads a file with one public key or several, in PEM.
func ParsePublicKeys(text []byte) ([]PublicKey, error) {
	if len(text) > maxKeyFile {
		return nil, tidelock.Errorf(tidelock.Invalid, "a file of public keys has at most %d bytes", maxKeyFile)
	}
	var keys []PublicKey
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(keys) == 0 || len(bytes.TrimSpace(rest)) > 0 {
				return nil, tidelock.Errorf(tidelock.Invalid, `the file must hold public keys alone, each between "-----BEGIN PUBLIC KEY-----" and its end`)
			}
			return keys, nil
		}
		key, err := parseBlock(block)
		if err != nil {
			return nil, err
		}
		if keys = append(keys, key); len(keys) > maxKeys {
			return nil, tidelock.Errorf(tidelock.Invalid, "a file holds at most %d public keys", maxKeys)
		}
	}
}

// retiredHeader is the PEM header that says when a key was retired.
const retiredHeader = "Retired"

func parseBlock(block *pem.Block) (PublicKey, error) {
	if block.Type != "PUBLIC KEY" {
		return PublicKey{}, tidelock.Errorf(tidelock.Invalid, "the file holds a %s; give a PUBLIC KEY", block.Type)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return PublicKey{}, tidelock.Errorf(tidelock.Invalid, "the public key cannot be read: its encoding is broken")
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok {
		return PublicKey{}, tidelock.Errorf(tidelock.Invalid, "the key is of a kind other than ECDSA P-256, the only one known here")
	}
	public, err := newPublicKey(key)
	if err != nil {
		return PublicKey{}, err
	}
	if at, ok := block.Headers[retiredHeader]; ok {
		if public.RetiredAt, err = time.Parse(time.RFC3339, at); err != nil {
			return PublicKey{}, tidelock.Errorf(tidelock.Invalid, "the public key has the time %q; it must be like 2006-01-02T15:04:05Z", at)
		}
	}
	return public, nil
}

// A Signer signs with the key in use, and remembers the public keys of those
// before it. It is safe for concurrent use.
type Signer struct {
	dir string

	mu      sync.RWMutex
	key     *ecdsa.PrivateKey
	public  PublicKey
	retired []PublicKey // newest first
}

// Open reads the keys of a folder; on the first start they are made. The
// private key is kept in a file that its owner alone may read. The caller keeps
// other processes out of the folder.
func Open(dir string) (*Signer, error) {
	s := &Signer{dir: dir}
	text, err := os.ReadFile(s.file(keyFile))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = s.firstKey()
	}
	if err != nil {
		return nil, fmt.Errorf("read the signing key: %w", err)
	}
	if s.key, err = parsePrivate(text); err != nil {
		return nil, fmt.Errorf("read the signing key in %q: %w; restore it from a backup", s.file(keyFile), err)
	}
	if s.public, err = newPublicKey(&s.key.PublicKey); err != nil {
		return nil, fmt.Errorf("read the signing key in %q: %w", s.file(keyFile), err)
	}
	text, err = os.ReadFile(s.file(retiredFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the retired signing keys: %w", err)
	}
	if s.retired, err = ParsePublicKeys(text); err != nil {
		return nil, fmt.Errorf("read the retired signing keys in %q: %w; restore it from a backup", s.file(retiredFile), err)
	}
	// A rotation that was cut short has listed the key that is still in use.
	s.retired = slices.DeleteFunc(s.retired, func(k PublicKey) bool { return k.ID == s.public.ID })
	return s, nil
}

func (s *Signer) firstKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	text, err := encode(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	return text, s.replace(keyFile, text)
}

func (s *Signer) file(name string) string { return filepath.Join(s.dir, name) }

func encode(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parsePrivate(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it does not hold a PRIVATE KEY in PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("its encoding is broken")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("it is not an ECDSA key")
	}
	return key, nil
}

// Keys lists the public key in use, and then the retired ones, newest first:
// what one of them signed is still good.
func (s *Signer) Keys() []PublicKey {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return append([]PublicKey{s.public}, s.retired...)
}

// A Rotation is a new key that nobody has yet.
type Rotation struct {
	Old, New PublicKey
	key      *ecdsa.PrivateKey
}

// NewRotation makes a key to take the place of the one in use.
func (s *Signer) NewRotation() (Rotation, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Rotation{}, fmt.Errorf("make a signing key: %w", err)
	}
	public, err := newPublicKey(&key.PublicKey)
	if err != nil {
		return Rotation{}, err
	}
	return Rotation{Old: s.Keys()[0], New: public, key: key}, nil
}

// Rotate puts a new key to use, and lists the old one as retired. Again: no
// error, nothing changes. It is a Conflict when another came first, or when the
// list of retired keys is full.
func (s *Signer) Rotate(r Rotation, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.public.ID == r.New.ID:
		return nil
	case s.public.ID != r.Old.ID:
		return tidelock.Errorf(tidelock.Conflict, "the signing key was rotated at the same time; look at the new one first")
	case len(s.retired) >= maxKeys:
		return tidelock.Errorf(tidelock.Conflict, "there are %d retired signing keys already; remove the oldest from %s and start the server again", maxKeys, s.file(retiredFile))
	}
	old := s.public
	old.RetiredAt = now.UTC().Truncate(time.Second)
	retired := append([]PublicKey{old}, s.retired...)
	text, err := encode(r.key)
	if err != nil {
		return fmt.Errorf("encode the signing key: %w", err)
	}
	// The old public key is written first: what it signed must stay good
	// whatever happens in between.
	if err := s.replace(retiredFile, encodeRetired(retired)); err != nil {
		return err
	}
	if err := s.replace(keyFile, text); err != nil {
		return err
	}
	s.key, s.public, s.retired = r.key, r.New, retired
	return nil
}

func encodeRetired(keys []PublicKey) []byte {
	var out bytes.Buffer
	for _, k := range keys {
		block, _ := pem.Decode([]byte(k.PEM()))
		block.Headers = map[string]string{retiredHeader: k.RetiredAt.Format(time.RFC3339)}
		_ = pem.Encode(&out, block) // a buffer takes everything
	}
	return out.Bytes()
}

// replace writes a file that its owner alone may read, whole or not at all.
func (s *Signer) replace(name string, text []byte) error {
	temp, err := os.CreateTemp(s.dir, ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %q: %w", s.file(name), err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(text)
	if err = errors.Join(err, temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), s.file(name))
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", s.file(name), err)
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("write %q: %w", s.file(name), err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
