package ociserver

import (
	"net/http"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

const octets = "application/octet-stream"

// readBlob sends a blob, or the part of it that was asked for.
func (q *request) readBlob() error {
	ctx, digest := q.r.Context(), tidelock.Digest(q.reference)
	content, size, err := q.registry.Blob(ctx, q.stored(), digest)
	if err != nil {
		return err
	}
	defer content.Close()
	if q.r.Method == http.MethodHead && q.by.asked(q.name, push) && q.forge.Allow(ctx, q.by.Principal, forge.PushImage, forge.OnProject(q.project)) == nil {
		// Who asks before a push, and hears that it is here, counts on it.
		if err := q.forge.NoteBlob(ctx, q.project, q.image, tidelock.Part{Digest: digest, Size: size}); err != nil {
			return err
		}
	}
	q.w.Header().Set("Content-Type", octets)
	q.w.Header().Set("Docker-Content-Digest", string(digest))
	q.w.Header().Set("Etag", `"`+string(digest)+`"`)
	http.ServeContent(q.patient(), q.r, "", time.Time{}, content)
	return nil
}

// deleteBlob takes a blob out of the image.
func (q *request) deleteBlob() error {
	if err := q.forge.DeleteBlob(q.r.Context(), q.by.Principal, q.project, q.image, tidelock.Digest(q.reference)); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}
