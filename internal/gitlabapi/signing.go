package gitlabapi

import (
	"net/http"

	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/signing"
)

// signingRoutes are ours: by these keys, in PEM, cosign and Flux verify what
// the server packaged.
func (a *API) signingRoutes() []route {
	return []route{
		{get, "/signing_keys", a.listSigningKeys},
		{post, "/signing_keys/rotate", a.rotateSigningKey},
	}
}

type signingKeyShape struct {
	ID        string `json:"id"`
	Algorithm string `json:"algorithm"`
	PublicKey string `json:"public_key"`
	InUse     bool   `json:"in_use"`
	RetiredAt stamp  `json:"retired_at"`
}

func newSigningKeyShape(k signing.PublicKey) signingKeyShape {
	return signingKeyShape{
		ID: k.ID, Algorithm: "ecdsa-p256-sha256", PublicKey: k.PEM(),
		InUse: k.RetiredAt.IsZero(), RetiredAt: stamp(k.RetiredAt),
	}
}

func (a *API) listSigningKeys(w http.ResponseWriter, r *request) error {
	keys, err := a.forge.SigningKeys(r.ctx(), r.by)
	if err != nil {
		return err
	}
	return ok(w, each(keys, newSigningKeyShape))
}

// rotateSigningKey wants the id of the key to replace, so that a request that
// is repeated rotates once.
func (a *API) rotateSigningKey(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.Administer, forge.OnForge); err != nil {
		return err
	}
	r.need("id")
	if err := r.err(); err != nil {
		return err
	}
	key, err := a.forge.RotateSigningKey(r.ctx(), r.by, r.text("id"))
	if err != nil {
		return err
	}
	return created(w, newSigningKeyShape(key))
}
