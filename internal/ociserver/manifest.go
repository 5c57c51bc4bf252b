package ociserver

import (
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
)

// readManifest sends the manifest that a tag or a digest means, or only says
// what it would send.
func (q *request) readManifest() (err error) {
	var a tidelock.Artifact
	var content []byte
	if q.r.Method == http.MethodHead {
		a, err = q.forge.StatManifest(q.r.Context(), q.by.Principal, q.project, q.image, q.reference)
	} else {
		a, content, err = q.forge.Manifest(q.r.Context(), q.by.Principal, q.project, q.image, q.reference)
	}
	if err != nil {
		if tidelock.KindOf(err) == tidelock.Invalid { // no such tag can be there
			return registry.Errorf(tidelock.NotFound, registry.ManifestUnknown, "%s", messageOf(err))
		}
		return err
	}
	h := q.w.Header()
	h.Set("Content-Type", a.MediaType)
	h.Set("Content-Length", strconv.FormatInt(a.Size, 10))
	h.Set("Docker-Content-Digest", string(a.Digest))
	h.Set("Etag", `"`+string(a.Digest)+`"`)
	q.w.WriteHeader(http.StatusOK)
	_, _ = q.w.Write(content) // a client that is gone misses nothing
	return nil
}

// pushManifest takes a manifest, under a tag or under its digest alone; then
// the query may name tags.
func (q *request) pushManifest() error {
	full := registry.Errorf(tidelock.TooLarge, registry.ManifestInvalid, "the manifest is larger than %d bytes", registry.MaxManifest)
	if q.r.ContentLength > registry.MaxManifest {
		return full
	}
	content, err := io.ReadAll(&bounded{in: q.body(), left: registry.MaxManifest, full: full})
	if err != nil {
		return err
	}
	m := forge.ManifestPush{Image: q.image, Body: content, Tags: q.r.URL.Query()["tag"]}
	if given := q.r.Header.Get("Content-Type"); given != "" {
		if m.MediaType, _, err = mime.ParseMediaType(given); err != nil {
			return registry.Errorf(tidelock.Invalid, registry.ManifestInvalid, "the Content-Type %.100q is not a media type", given)
		}
	}
	if strings.Contains(q.reference, ":") {
		m.Digest = tidelock.Digest(q.reference)
		if err := tidelock.ValidDigest(m.Digest); err != nil {
			return registry.Errorf(tidelock.Invalid, registry.DigestInvalid, "%v", err)
		}
	} else {
		m.Tags = append([]string{q.reference}, m.Tags...)
	}
	a, err := q.forge.PushManifest(q.r.Context(), q.by.Principal, q.project, m)
	if err != nil {
		return err
	}
	q.metrics.pushes.Inc()
	h := q.w.Header()
	h.Set("Location", base+"/"+q.name+"/manifests/"+string(a.Digest))
	h.Set("Docker-Content-Digest", string(a.Digest))
	if a.Subject != "" {
		h.Set("Oci-Subject", string(a.Subject))
	}
	for _, tag := range q.r.URL.Query()["tag"] {
		h.Add("Oci-Tag", tag)
	}
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

// deleteManifest removes a tag, or an artifact with all its tags.
func (q *request) deleteManifest() error {
	if err := q.forge.DeleteReference(q.r.Context(), q.by.Principal, q.project, q.image, q.reference); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// tagPage is how many tags are listed at a time, at most.
const tagPage = 1000

// listTags lists the image's tags in order of name, a page at a time.
func (q *request) listTags() error {
	query := q.r.URL.Query()
	most := tagPage
	if text := query.Get("n"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return &statusError{http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", fmt.Sprintf("n=%.50q is not a number of tags", text)}
		}
		most = min(n, most)
	}
	found, err := q.forge.ImageTags(q.r.Context(), q.by.Principal, q.project, q.image, query.Get("last"), most+1)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(found))
	for _, tag := range found[:min(most, len(found))] {
		names = append(names, tag.Name)
	}
	if len(found) > most && most > 0 {
		q.next("/tags/list", url.Values{"n": {strconv.Itoa(most)}, "last": {names[most-1]}})
	}
	writeJSON(q.w, http.StatusOK, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{q.name, names})
	return nil
}

// next says where the next page is.
func (q *request) next(path string, query url.Values) {
	q.w.Header().Set("Link", "<"+base+"/"+q.name+path+"?"+query.Encode()+`>; rel="next"`)
}

const (
	// referrerPage is how long a list of referrers may be, in bytes, more or
	// less.
	referrerPage = 2 << 20

	// referrersAtOnce is how many are read from the record at a time: each may
	// have long annotations.
	referrersAtOnce = 50
)

// listReferrers lists the artifacts that are attached to another one, as an
// index.
func (q *request) listReferrers() error {
	type descriptor struct {
		MediaType    string            `json:"mediaType"`
		Digest       tidelock.Digest   `json:"digest"`
		Size         int64             `json:"size"`
		ArtifactType string            `json:"artifactType,omitempty"`
		Annotations  map[string]string `json:"annotations,omitempty"`
	}
	query := q.r.URL.Query()
	subject, kind, last := tidelock.Digest(q.reference), query.Get("artifactType"), tidelock.Digest(query.Get("last"))
	list := []json.RawMessage{}
	for size, more := 0, true; more; {
		found, err := q.forge.Referrers(q.r.Context(), q.by.Principal, q.project, q.image, subject, kind, last, referrersAtOnce)
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return err // an image that nothing was pushed to has no referrers
		}
		more = len(found) == referrersAtOnce
		for _, a := range found {
			if size >= referrerPage {
				page := url.Values{"last": {string(last)}}
				if kind != "" {
					page.Set("artifactType", kind)
				}
				q.next("/referrers/"+q.reference, page)
				more = false
				break
			}
			text, err := json.Marshal(descriptor{a.MediaType, a.Digest, a.Size, a.Type, a.Annotations})
			if err != nil {
				return fmt.Errorf("write a descriptor: %w", err)
			}
			list, size, last = append(list, text), size+len(text), a.Digest
		}
	}
	if kind != "" {
		q.w.Header().Set("Oci-Filters-Applied", "artifactType")
	}
	q.w.Header().Set("Content-Type", tidelock.MediaTypeIndex)
	writeJSON(q.w, http.StatusOK, struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
	}{2, tidelock.MediaTypeIndex, list})
	return nil
}
