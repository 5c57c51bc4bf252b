package forge

import (
	"bytes"
	"context"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"tidelock.dev"
)

// keyStore is what the rules remember of SSH keys.
type keyStore interface {
	// CreateKey stores a person's key. A fingerprint that is there already, as
	// anybody's key or as a deploy key, is a Conflict of fingerprint_sha256.
	CreateKey(context.Context, tidelock.Key) (tidelock.Key, error)
	Key(context.Context, tidelock.KeyID) (tidelock.Key, error)
	KeyByFingerprint(ctx context.Context, fingerprint string) (tidelock.Key, error)
	Keys(context.Context, tidelock.KeyFilter, tidelock.Page) ([]tidelock.Key, int, error)
	// DeleteKey removes a key from wherever it is enabled.
	DeleteKey(context.Context, tidelock.KeyID) error
	// TouchKey records a use, at most one a minute.
	TouchKey(context.Context, tidelock.KeyID, time.Time) error
	// LiveKeys returns those of the ids that exist and are good at a time, and
	// whose user, if any, is not blocked.
	LiveKeys(context.Context, []tidelock.KeyID, time.Time) ([]tidelock.KeyID, error)

	// EnableDeployKey enables a key in its holder; one without an id is stored
	// first. Enabled there already is a Conflict of deploy_key.
	EnableDeployKey(context.Context, tidelock.DeployKey) (tidelock.DeployKey, error)
	DeployKey(context.Context, tidelock.KeyID, tidelock.Holder) (tidelock.DeployKey, error)
	// DeployKeys lists those enabled in exactly the holder, not above it.
	DeployKeys(context.Context, tidelock.Holder, tidelock.Page) ([]tidelock.DeployKey, int, error)
	// Enabled lists where keys are enabled.
	Enabled(context.Context, ...tidelock.KeyID) ([]tidelock.DeployKey, error)
	// UpdateDeployKey writes the title in its holder, and whether it may push.
	UpdateDeployKey(context.Context, tidelock.DeployKey) error
	// DisableDeployKey takes a key from a holder. A deploy key that is enabled
	// nowhere any more, for this or another reason, is no more.
	DisableDeployKey(context.Context, tidelock.KeyID, tidelock.Holder) error
	// KeyRights says what a deploy key may do in a holder, by itself or by a
	// group above it.
	KeyRights(context.Context, tidelock.KeyID, tidelock.Holder) (pull, push bool, err error)
}

// RSA keys are taken within these sizes: smaller ones can be broken, and
// checking a signature of a larger one is work for the server.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// KeyAlgorithms are the signatures that prove a key to be somebody's.
var KeyAlgorithms = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519,
	ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256,
	ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512,
}

// keyTypes are the types of keys that are taken.
var keyTypes = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519,
	ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256,
	ssh.KeyAlgoRSA,
}

// CheckKey refuses keys that are too weak, too odd or too much work.
func CheckKey(key ssh.PublicKey) error {
	if !slices.Contains(keyTypes, key.Type()) {
		return tidelock.FieldErrorf(tidelock.Invalid, "key", "type %.60q is not supported; use ssh-ed25519", key.Type())
	}
	holder, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil
	}
	if key, ok := holder.CryptoPublicKey().(*rsa.PublicKey); ok {
		switch bits := key.N.BitLen(); {
		case bits < minRSABits:
			return tidelock.FieldErrorf(tidelock.Invalid, "key", "is an RSA key of %d bits; it needs %d, or use ssh-ed25519", bits, minRSABits)
		case bits > maxRSABits:
			return tidelock.FieldErrorf(tidelock.Invalid, "key", "is an RSA key of %d bits; the most is %d", bits, maxRSABits)
		}
	}
	return nil
}

// maxKey bounds a line of authorized_keys; RSA keys of maxRSABits take a
// quarter of it.
const maxKey = 8 << 10

// parseKey reads one line of authorized_keys, with or without an end of line
// and a comment. Options are refused: nobody would honour them.
func parseKey(line string) (public, fingerprint string, _ error) {
	bad := func(format string, args ...any) (string, string, error) {
		return "", "", tidelock.FieldErrorf(tidelock.Invalid, "key", format, args...)
	}
	line = strings.TrimSpace(line)
	switch {
	case line == "":
		return bad("can't be blank")
	case len(line) > maxKey:
		return bad("is longer than %d bytes", maxKey)
	case !utf8.ValidString(line) || strings.ContainsFunc(line, unicode.IsControl):
		return bad("is invalid: paste the one line of a file that ends in .pub")
	case strings.HasPrefix(line, "-----BEGIN"):
		return bad("is a private key; paste the one line of the file that ends in .pub")
	}
	key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) > 0 || len(rest) > 0 {
		return bad("is invalid: paste the one line of a file that ends in .pub")
	}
	if err := CheckKey(key); err != nil {
		return "", "", err
	}
	public = string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key)))
	if comment != "" {
		public += " " + comment
	}
	return public, ssh.FingerprintSHA256(key), nil
}

// NewKey is what an SSH key is made from.
type NewKey struct {
	Title     string
	Key       string    // a line of authorized_keys
	ExpiresAt time.Time // zero for never
}

func (n NewKey) build(by Principal, now time.Time) (tidelock.Key, error) {
	public, fingerprint, err := parseKey(n.Key)
	if err != nil {
		return tidelock.Key{}, err
	}
	if err := checkKeyTitle(n.Title); err != nil {
		return tidelock.Key{}, err
	}
	if !n.ExpiresAt.IsZero() && !n.ExpiresAt.After(now) {
		return tidelock.Key{}, tidelock.FieldErrorf(tidelock.Invalid, "expires_at", "must be in the future")
	}
	key := tidelock.Key{Title: n.Title, Public: public, Fingerprint: fingerprint, CreatedAt: now, ExpiresAt: n.ExpiresAt}
	key.Creator, _ = by.ids()
	return key, nil
}

func checkKeyTitle(title string) error {
	switch {
	case strings.TrimSpace(title) == "":
		return tidelock.FieldErrorf(tidelock.Invalid, "title", "can't be blank")
	case utf8.RuneCountInString(title) > 255:
		return tidelock.FieldErrorf(tidelock.Invalid, "title", "is too long (maximum is 255 characters)")
	case !utf8.ValidString(title) || strings.ContainsFunc(title, unicode.IsControl):
		return tidelock.FieldErrorf(tidelock.Invalid, "title", "is invalid")
	}
	return nil
}

func errNoKey() error { return tidelock.Errorf(tidelock.NotFound, "Key Not Found") }

// AuthenticateKey finds who the holder of a key is, from a fingerprint that
// the client has proven to hold the private half of. A key that is unknown,
// expired or of a blocked user is Unauthenticated.
func (f *Forge) AuthenticateKey(ctx context.Context, fingerprint string) (Principal, error) {
	p, err := f.KnowsKey(ctx, fingerprint)
	if err != nil {
		return Principal{}, err
	}
	id, now := p.Key.ID, f.now()
	if now.Sub(p.Key.LastUsed) >= time.Minute {
		f.later(func(ctx context.Context) error { return f.store.TouchKey(ctx, id, now) })
	}
	return p, nil
}

// KnowsKey is AuthenticateKey for a key that a client merely offers: it says
// whom the key would stand for, and leaves no trace.
func (f *Forge) KnowsKey(ctx context.Context, fingerprint string) (Principal, error) {
	key, err := f.store.KeyByFingerprint(ctx, fingerprint)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return Principal{}, tidelock.Errorf(tidelock.Unauthenticated, "the key is not known here")
	case err != nil:
		return Principal{}, fmt.Errorf("look up a key: %w", err)
	case !key.Active(f.now()):
		return Principal{}, tidelock.Errorf(tidelock.Unauthenticated, "the key has expired")
	}
	p := Principal{Key: &key}
	if key.User != 0 {
		user, err := f.store.User(ctx, key.User)
		if err != nil {
			return Principal{}, fmt.Errorf("read the user of key %d: %w", key.ID, err)
		}
		if user.Blocked {
			return Principal{}, tidelock.Errorf(tidelock.Unauthenticated, "the user is blocked")
		}
		p.User = &user
	}
	return p, nil
}

// LiveKeys returns those of the keys that still authenticate.
func (f *Forge) LiveKeys(ctx context.Context, ids []tidelock.KeyID) ([]tidelock.KeyID, error) {
	return f.store.LiveKeys(ctx, ids, f.now())
}
