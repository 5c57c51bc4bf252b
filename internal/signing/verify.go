package signing

import (
	"context"
	"errors"
	"fmt"
	"io"

	"tidelock.dev"
)

// A Verified is a signature that was found good.
type Verified struct {
	Key       PublicKey
	Reference string          // the image, as who signed it called it
	Subject   tidelock.Digest // what was signed
	Optional  map[string]any  // what else was signed with it
}

// A Fetch reads a blob of a signature; NotFound when it is not there.
type Fetch func(context.Context, tidelock.Digest) (io.ReadCloser, error)

// Verify finds the signatures of a subject that one of the keys made, in a
// manifest of signatures. It is an error, of kind Denied, when none of them
// did. A signature counts only when the exact bytes that the manifest names
// were signed, and when these say that they are a signature of this subject.
//
// That one counts is enough: anybody who may push can add a bad one beside it.
func Verify(ctx context.Context, keys []PublicKey, subject tidelock.Digest, body []byte, fetch Fetch) ([]Verified, error) {
	if len(keys) == 0 {
		return nil, tidelock.Errorf(tidelock.Denied, "there is no public key to verify %s with", subject)
	}
	if err := tidelock.ValidDigest(subject); err != nil {
		return nil, err
	}
	m, err := parseManifest(body)
	if err != nil {
		return nil, tidelock.Errorf(tidelock.Denied, "%s is not signed: %v", subject, err)
	}
	var good []Verified
	var reasons []error
	for _, layer := range m.Layers {
		v, err := verify(ctx, keys, subject, layer, fetch)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("verify the signatures of %s: %w", subject, ctx.Err())
		}
		if err != nil {
			reasons = append(reasons, err)
			continue
		}
		good = append(good, v)
	}
	if len(good) > 0 {
		return good, nil
	}
	switch len(reasons) {
	case 0:
		return nil, tidelock.Errorf(tidelock.Denied, "%s is not signed: there is no signature in the manifest", subject)
	case 1:
		return nil, tidelock.Errorf(tidelock.Denied, "%s is not signed by the given key: %v", subject, reasons[0])
	}
	return nil, tidelock.Errorf(tidelock.Denied, "%s is not signed by the given key: none of %d signatures is good; of the last, %v", subject, len(reasons), reasons[len(reasons)-1])
}

func verify(ctx context.Context, keys []PublicKey, subject tidelock.Digest, layer descriptor, fetch Fetch) (Verified, error) {
	body, err := payloadOf(ctx, layer, fetch)
	if err != nil {
		return Verified{}, err
	}
	for _, key := range keys {
		if !goodSignature(key.key, body, layer.Annotations[AnnotationSignature]) {
			continue
		}
		p, err := parsePayload(body)
		if err != nil {
			return Verified{}, err
		}
		if p.Critical.Image.Digest != string(subject) {
			return Verified{}, fmt.Errorf("it is the signature of %q", p.Critical.Image.Digest)
		}
		return Verified{Key: key, Reference: p.Critical.Identity.Reference, Subject: subject, Optional: p.Optional}, nil
	}
	return Verified{}, errors.New("it was made with another key")
}

// payloadOf reads what was signed, and sees that these are the bytes that the
// manifest names.
func payloadOf(ctx context.Context, layer descriptor, fetch Fetch) ([]byte, error) {
	switch {
	case layer.MediaType != MediaTypePayload:
		return nil, fmt.Errorf("a layer of type %q is not a signature", layer.MediaType)
	case layer.Size < 0 || layer.Size > maxPayload:
		return nil, fmt.Errorf("it signs %d bytes, more than %d", layer.Size, maxPayload)
	}
	if err := tidelock.ValidDigest(layer.Digest); err != nil {
		return nil, err
	}
	r, err := fetch(ctx, layer.Digest)
	if err != nil {
		return nil, fmt.Errorf("read what was signed: %w", err)
	}
	body, err := io.ReadAll(io.LimitReader(r, layer.Size+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read what was signed: %w", err)
	}
	if int64(len(body)) != layer.Size || tidelock.DigestOf(body) != layer.Digest {
		return nil, fmt.Errorf("what was signed is not what %s names", layer.Digest)
	}
	return body, nil
}

func parsePayload(body []byte) (payload, error) {
	var p payload
	if err := decode(body, &p); err != nil {
		return p, fmt.Errorf("what was signed cannot be read: %w", err)
	}
	if p.Critical.Type != payloadType {
		return p, fmt.Errorf("what was signed is of type %q, not %q", p.Critical.Type, payloadType)
	}
	return p, nil
}

// Check sees that every signature in a manifest is one of the subject,
// whoever made it. Flux looks only at the key: it would take what was signed
// for one artifact as a signature of another, if it were pushed there.
func Check(ctx context.Context, subject tidelock.Digest, body []byte, fetch Fetch) error {
	m, err := parseManifest(body)
	if err != nil {
		return err
	}
	for _, layer := range m.Layers {
		signed, err := payloadOf(ctx, layer, fetch)
		if err != nil {
			return tidelock.Errorf(tidelock.Invalid, "%s cannot be a signature of %s: %v", layer.Digest, subject, err)
		}
		p, err := parsePayload(signed)
		if err != nil {
			return tidelock.Errorf(tidelock.Invalid, "%s cannot be a signature of %s: %v", layer.Digest, subject, err)
		}
		if p.Critical.Image.Digest != string(subject) {
			return tidelock.Errorf(tidelock.Invalid, "%s cannot be a signature of %s: it signs %q", layer.Digest, subject, p.Critical.Image.Digest)
		}
	}
	return nil
}
