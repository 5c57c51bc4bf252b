package registry

import (
	"fmt"

	"tidelock.dev"
)

// A Code names a problem in the words of the OCI distribution specification.
type Code string

const (
	BlobUnknown         Code = "BLOB_UNKNOWN"
	BlobUploadInvalid   Code = "BLOB_UPLOAD_INVALID"
	BlobUploadUnknown   Code = "BLOB_UPLOAD_UNKNOWN"
	DigestInvalid       Code = "DIGEST_INVALID"
	ManifestBlobUnknown Code = "MANIFEST_BLOB_UNKNOWN"
	ManifestInvalid     Code = "MANIFEST_INVALID"
	ManifestUnknown     Code = "MANIFEST_UNKNOWN"
	NameInvalid         Code = "NAME_INVALID"
	NameUnknown         Code = "NAME_UNKNOWN"
	SizeInvalid         Code = "SIZE_INVALID"
	TagInvalid          Code = "TAG_INVALID"
	Unauthorized        Code = "UNAUTHORIZED"
	Denied              Code = "DENIED"
	Unsupported         Code = "UNSUPPORTED"
	TooManyRequests     Code = "TOOMANYREQUESTS"
	RangeInvalid        Code = "RANGE_INVALID"
	Unavailable         Code = "UNAVAILABLE"
	Unknown             Code = "UNKNOWN"
)

// A Problem is an error that clients of the registry are told by its code; to
// everybody else it is the tidelock.Error that it wraps.
type Problem struct {
	Code Code
	err  error
}

// Errorf makes a Problem whose text may be shown to users.
func Errorf(kind tidelock.Kind, code Code, format string, args ...any) error {
	return &Problem{Code: code, err: tidelock.Errorf(kind, "%s", fmt.Sprintf(format, args...))}
}

func (p *Problem) Error() string { return p.err.Error() }

// Unwrap gives the problem its kind.
func (p *Problem) Unwrap() error { return p.err }

func errNoBlob(digest tidelock.Digest) error {
	return Errorf(tidelock.NotFound, BlobUnknown, "the image has no blob %s", digest)
}

func errNoManifest(digest tidelock.Digest) error {
	return Errorf(tidelock.NotFound, ManifestUnknown, "the image has no manifest %s", digest)
}

func errManifestSize() error {
	return Errorf(tidelock.TooLarge, ManifestInvalid, "the manifest is larger than %d bytes", MaxManifest)
}
