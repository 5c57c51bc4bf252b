package ociserver

import (
	"net/http"
	"regexp"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// what is the sort of thing that a path names.
type what string

const (
	aBase     what = ""
	aBlob     what = "blob"
	uploads   what = "uploads"
	anUpload  what = "upload"
	aManifest what = "manifest"
	tags      what = "tags"
	referrers what = "referrers"
)

// A route is what a path names.
type route struct {
	what
	name      string // of the image, with the project's path
	reference string // digest, tag, or id of an upload
}

const maxName = 255

// validName is what clients take as the name of an image: lower case, no empty
// words, no dots at their ends.
var validName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+$`)

// escapedColon is the only escape that a path may have: some clients write
// digests with it. Others could only hide what the path means.
var escapedColon = strings.NewReplacer("%3A", ":", "%3a", ":")

// parseRoute reads a path below /v2 from its end, because names may hold the
// words that stand after them.
func parseRoute(r *http.Request) (route, error) {
	path := escapedColon.Replace(r.URL.EscapedPath())
	path = strings.TrimPrefix(strings.TrimPrefix(path, base), "/")
	switch {
	case path == "":
		return route{}, nil
	case strings.Contains(path, "%"):
		return route{}, errName(path)
	case path == "_catalog":
		return route{}, &statusError{http.StatusMethodNotAllowed, registry.Unsupported,
			"there is no list of all images; GET /api/v4/projects/:id/registry/repositories lists those of a project"}
	}
	words := strings.Split(path, "/")
	last := func(n int) string { // the nth word from the end
		if n > len(words) {
			return ""
		}
		return words[len(words)-n]
	}
	var to route
	end := 2 // how many words follow the name
	switch {
	case last(3) == "blobs" && last(2) == "uploads":
		to, end = route{what: anUpload, reference: last(1)}, 3
		if to.reference == "" {
			to.what = uploads
		}
	case last(2) == "blobs" && last(1) == "uploads":
		to = route{what: uploads}
	case last(2) == "blobs":
		to = route{what: aBlob, reference: last(1)}
	case last(2) == "manifests":
		to = route{what: aManifest, reference: last(1)}
	case last(2) == "tags" && last(1) == "list":
		to = route{what: tags}
	case last(2) == "referrers":
		to = route{what: referrers, reference: last(1)}
	default:
		return route{}, &statusError{http.StatusNotFound, registry.Unsupported, "there is nothing at this address"}
	}
	to.name = strings.Join(words[:len(words)-end], "/")
	if len(to.name) > maxName || !validName.MatchString(to.name) {
		return route{}, errName(to.name)
	}
	if to.what == aBlob || to.what == referrers {
		if err := tidelock.ValidDigest(tidelock.Digest(to.reference)); err != nil {
			return route{}, registry.Errorf(tidelock.Invalid, registry.DigestInvalid, "%v", err)
		}
	}
	return to, nil
}

func errName(name string) error {
	return registry.Errorf(tidelock.Invalid, registry.NameInvalid,
		"%.300q is not the name of an image: a project's path in lower case, and what follows it", name)
}
