package forge

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/signing"
)

// SigningKeys lists the public keys by which artifacts that this forge made
// are verified: the one in use, and then those before it, newest first.
func (f *Forge) SigningKeys(ctx context.Context, p Principal) ([]signing.PublicKey, error) {
	if err := f.Allow(ctx, p, ReadSigningKeys, OnForge); err != nil {
		return nil, err
	}
	return f.signingKeys(), nil
}

func (f *Forge) signingKeys() []signing.PublicKey {
	if f.signer == nil {
		return []signing.PublicKey{}
	}
	return f.signer.Keys()
}

// RotateSigningKey puts a new key to use for what is signed from now on, in the
// place of one that must still be in use. The old public key stays listed.
func (f *Forge) RotateSigningKey(ctx context.Context, p Principal, old string) (signing.PublicKey, error) {
	if err := f.Allow(ctx, p, Administer, OnForge); err != nil {
		return signing.PublicKey{}, err
	}
	if f.signer == nil {
		return signing.PublicKey{}, errNoSigner()
	}
	rotation, err := f.signer.NewRotation()
	if err != nil {
		return signing.PublicKey{}, err
	}
	if rotation.Old.ID != old {
		return signing.PublicKey{}, tidelock.Errorf(tidelock.Conflict, "the signing key in use is %s; say its id to replace it", rotation.Old.ID)
	}
	err = f.audited(ctx, p, func(context.Context) (change, error) {
		c := change{act: "signing key rotated", on: OnForge, subject: rotation.New.ID, detail: fmt.Sprintf("in the place of %s", rotation.Old.ID)}
		return c, f.signer.Rotate(rotation, f.now())
	})
	return rotation.New, err
}

func errNoSigner() error {
	return tidelock.Errorf(tidelock.Unavailable, "this forge signs nothing: it has no signing key")
}

// SignManifest signs a manifest that the forge is about to publish. The image
// is its name as clients know it, with the host. The signature is there before
// the artifact, so that nobody who is told of the artifact finds it unsigned;
// signatures of others stay beside it.
func (f *Forge) SignManifest(ctx context.Context, project tidelock.Project, m ManifestPush, image string, cause tidelock.Push) error {
	if f.signer == nil {
		return errNoSigner()
	}
	a, err := registry.ParseManifest(m.MediaType, m.Body)
	if err != nil {
		return err
	}
	name := registry.Repo(project.ID, m.Image)
	present, err := f.signaturesOf(ctx, project.ID, m.Image, a.Digest)
	if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		return err
	}
	signature, err := f.signer.Sign(image, a, present)
	if err != nil {
		return err
	}
	for _, blob := range signature.Blobs {
		part, err := f.registry.PutBlob(ctx, name, blob.Digest, bytes.NewReader(blob.Body))
		if err != nil {
			return fmt.Errorf("write the signature of %s: %w", a.Digest, err)
		}
		if err := f.NoteBlob(ctx, project, m.Image, part); err != nil {
			return fmt.Errorf("write the signature of %s: %w", a.Digest, err)
		}
	}
	_, err = f.PublishArtifact(ctx, project, ManifestPush{
		Image: m.Image, Tags: []string{signature.Tag}, MediaType: signature.MediaType, Body: signature.Manifest, Digest: signature.Digest, Ref: m.Ref,
	}, cause)
	return err
}

// signaturesOf reads the manifest of an artifact's signatures.
func (f *Forge) signaturesOf(ctx context.Context, project tidelock.ProjectID, image string, subject tidelock.Digest) ([]byte, error) {
	i, err := f.store.ImageByName(ctx, project, image)
	if err != nil {
		return nil, err
	}
	tag, err := f.store.Tag(ctx, i.ID, signing.Tag(subject))
	if err != nil {
		return nil, err
	}
	_, body, err := f.registry.Manifest(ctx, registry.Repo(project, image), tag.Digest)
	return body, err
}

// fetcher reads blobs of an image.
func (f *Forge) fetcher(project tidelock.ProjectID, image string) signing.Fetch {
	return func(ctx context.Context, digest tidelock.Digest) (io.ReadCloser, error) {
		body, _, err := f.registry.Blob(ctx, registry.Repo(project, image), digest)
		return body, err
	}
}

// checkSignatures refuses under the tag of an artifact's signatures whatever
// signs something else. Flux asks only whose key it is: with a signature taken
// from another artifact, anybody who may push could make it apply theirs.
func (f *Forge) checkSignatures(ctx context.Context, project tidelock.ProjectID, m ManifestPush) error {
	for _, tag := range m.Tags {
		subject, ok := signing.SubjectOf(tag)
		if !ok {
			continue
		}
		if err := signing.Check(ctx, subject, m.Body, f.fetcher(project, m.Image)); err != nil {
			return registry.Errorf(tidelock.Invalid, registry.ManifestInvalid, "tag %s: %v", tag, err)
		}
	}
	return nil
}

// verify finds out who of some keys signed an artifact; Denied when nobody did.
func (f *Forge) verify(ctx context.Context, keys []signing.PublicKey, image tidelock.Image, subject tidelock.Digest) ([]signing.Verified, error) {
	body, err := f.signaturesOf(ctx, image.Project, image.Name, subject)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return nil, tidelock.Errorf(tidelock.Denied, "%s is not signed", subject)
	}
	if err != nil {
		return nil, fmt.Errorf("read the signatures of %s: %w", subject, err)
	}
	return signing.Verify(ctx, keys, subject, body, f.fetcher(image.Project, image.Name))
}
