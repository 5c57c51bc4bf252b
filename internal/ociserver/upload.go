package ociserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
)

// startUpload begins an upload; or it takes a blob from another image, or from
// the request itself, at once.
func (q *request) startUpload() error {
	ctx, query := q.r.Context(), q.r.URL.Query()
	if mount, from := tidelock.Digest(query.Get("mount")), query.Get("from"); mount != "" && from != "" {
		mounted, err := q.mount(mount, from)
		if err != nil || mounted {
			return err
		}
	}
	if _, err := q.room(); err != nil {
		return err
	}
	u, err := q.registry.StartUpload(ctx, q.stored(), q.by.owner(), query.Get("digest-algorithm"))
	if err != nil {
		return err
	}
	if query.Has("digest") {
		return q.commit(u)
	}
	q.tellUpload(u.ID, 0)
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// mount takes a blob from another image that the caller may read. If it is not
// there, or not for the caller, an upload is begun in its place; whoever asks
// learns nothing more.
func (q *request) mount(digest tidelock.Digest, from string) (bool, error) {
	ctx := q.r.Context()
	if tidelock.ValidDigest(digest) != nil || len(from) > maxName || !validName.MatchString(from) || !q.by.asked(from, pull) {
		return false, nil
	}
	source, image, err := q.forge.ProjectOfImage(ctx, from)
	if err == nil {
		err = q.forge.Allow(ctx, q.by.Principal, forge.PullImage, forge.OnProject(source))
	}
	var size int64
	if err == nil {
		size, err = q.registry.Mount(ctx, q.stored(), registry.Repo(source.ID, image), digest)
	}
	if err == nil {
		err = q.forge.NoteBlob(ctx, q.project, q.image, tidelock.Part{Digest: digest, Size: size})
	}
	switch tidelock.KindOf(err) {
	case tidelock.NotFound, tidelock.Denied, tidelock.Unauthenticated:
		return false, nil
	}
	if err != nil {
		return false, err
	}
	q.tellBlob(digest)
	q.w.WriteHeader(http.StatusCreated)
	return true, nil
}

// room is how much the project's images may still grow by.
func (q *request) room() (int64, error) {
	room, err := q.forge.ImageRoom(q.r.Context(), q.project)
	if err == nil && room <= 0 {
		err = q.errNoRoom()
	}
	return room, err
}

func (q *request) errNoRoom() error {
	return registry.Errorf(tidelock.TooLarge, registry.Denied,
		"the images of %s have reached their quota; remove some, or ask an administrator for more", q.project.FullPath)
}

func (q *request) upload() (*registry.Upload, error) {
	return q.registry.Upload(q.stored(), q.by.owner(), q.reference)
}

func (q *request) uploadStatus() error {
	u, err := q.upload()
	if err != nil {
		return err
	}
	size, err := u.Size()
	if err != nil {
		return err
	}
	q.tellUpload(u.ID, size)
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// appendUpload takes a piece of a blob.
func (q *request) appendUpload() error {
	u, err := q.upload()
	if err != nil {
		return err
	}
	if kind := q.r.Header.Get("Content-Type"); kind != "" && kind != octets {
		return registry.Errorf(tidelock.Invalid, registry.BlobUploadInvalid, "a piece of a blob is sent as %s", octets)
	}
	size, err := q.append(u)
	if problem, ok := errors.AsType[*registry.Problem](err); ok && problem.Code == registry.RangeInvalid {
		q.tellUpload(u.ID, size)
	}
	if err != nil {
		return err
	}
	q.tellUpload(u.ID, size)
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

var contentRange = regexp.MustCompile(`^(?:bytes )?(\d{1,18})-(\d{1,18})(?:/.*)?$`)

// append adds the body of the request to an upload, where its Content-Range
// says, and returns the upload's size.
func (q *request) append(u *registry.Upload) (int64, error) {
	at, length := int64(-1), q.r.ContentLength
	if text := q.r.Header.Get("Content-Range"); text != "" {
		match := contentRange.FindStringSubmatch(text)
		if match == nil {
			return 0, registry.Errorf(tidelock.Invalid, registry.BlobUploadInvalid, "the Content-Range %.100q is not <start>-<end>", text)
		}
		at, _ = strconv.ParseInt(match[1], 10, 64) // up to 18 digits
		end, _ := strconv.ParseInt(match[2], 10, 64)
		if length >= 0 && end-at+1 != length {
			return 0, registry.Errorf(tidelock.Invalid, registry.SizeInvalid, "the Content-Range %s is not that of %d bytes", text, length)
		}
		length = end - at + 1
	}
	size, err := u.Size()
	if err != nil {
		return 0, err
	}
	room, err := q.room()
	if err != nil {
		return size, err
	}
	full := q.errNoRoom()
	if most := q.registry.MaxBlob(); most < room {
		room, full = most, registry.Errorf(tidelock.TooLarge, registry.SizeInvalid, "the blob is larger than %d bytes, which is the most that is taken", most)
	}
	if room -= size; length > room {
		return size, full
	}
	content := &bounded{in: q.body(), left: max(0, room), full: full}
	if at >= 0 && q.r.ContentLength < 0 && length < room {
		content.left, content.full = length, registry.Errorf(tidelock.Invalid, registry.SizeInvalid, "there are more bytes than the Content-Range says")
	}
	size, err = u.AppendAt(q.r.Context(), at, content)
	if tidelock.KindOf(err) == tidelock.TooLarge {
		// What does not fit is not kept for somebody to go on with.
		err = errors.Join(err, u.Cancel(context.WithoutCancel(q.r.Context())))
	}
	return size, err
}

// finishUpload takes the last piece of a blob, if there is one, and keeps the
// blob.
func (q *request) finishUpload() error {
	u, err := q.upload()
	if err != nil {
		return err
	}
	return q.commit(u)
}

func (q *request) commit(u *registry.Upload) error {
	ctx := q.r.Context()
	digest := tidelock.Digest(q.r.URL.Query().Get("digest"))
	if err := tidelock.ValidDigest(digest); err != nil {
		return registry.Errorf(tidelock.Invalid, registry.DigestInvalid, "%v", err)
	}
	if q.r.ContentLength != 0 || q.r.Header.Get("Content-Range") != "" {
		if size, err := q.append(u); err != nil {
			q.tellUpload(u.ID, size)
			return err
		}
	}
	blob, err := u.Commit(ctx, digest)
	if err != nil {
		return err
	}
	// The bytes are here: that the client may be gone changes nothing.
	if err := q.forge.NoteBlob(context.WithoutCancel(ctx), q.project, q.image, blob); err != nil {
		return err
	}
	q.tellBlob(blob.Digest)
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

func (q *request) cancelUpload() error {
	u, err := q.upload()
	if err != nil {
		return err
	}
	if err := u.Cancel(q.r.Context()); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// tellUpload says where an upload goes on. Locations are paths, so that they
// are on the host that the client chose.
func (q *request) tellUpload(id string, size int64) {
	h := q.w.Header()
	h.Set("Location", base+"/"+q.name+"/blobs/uploads/"+id)
	h.Set("Docker-Upload-Uuid", id)
	h.Set("Range", fmt.Sprintf("0-%d", max(0, size-1)))
}

func (q *request) tellBlob(digest tidelock.Digest) {
	q.w.Header().Set("Location", base+"/"+q.name+"/blobs/"+string(digest))
	q.w.Header().Set("Docker-Content-Digest", string(digest))
}
