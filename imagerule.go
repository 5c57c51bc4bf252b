package tidelock

import "time"

// A TagRule protects the tags of a project's images that its pattern, a
// regular expression, matches. An immutable one lets them be made by everyone
// who may push, and lets nobody move or remove them.
type TagRule struct {
	ID          int64
	Project     ProjectID
	Pattern     string
	PushLevel   AccessLevel // to make or move such a tag
	DeleteLevel AccessLevel
}

// Immutable reports whether nobody may move or remove what the rule matches.
func (r TagRule) Immutable() bool { return r.PushLevel == NoAccess }

// SemVerTags is the pattern of the immutable tags that a project begins with:
// versions, with "_" where a registry has no "+".
const SemVerTags = `^v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(_[0-9A-Za-z.-]+)?$`

// ImageSettings are what a project says of its images as a whole.
type ImageSettings struct {
	Project   ProjectID
	Quota     int64 // bytes of all images; 0 is the forge's default, below 0 no limit
	Retention Retention
}

// A Retention says which tags are removed by and by. Of the tags of an image
// that Remove matches and Keep does not, the newest KeepNewest stay and so do
// those that moved within OlderThan; "latest" stays anyway.
type Retention struct {
	Enabled    bool
	Every      time.Duration
	KeepNewest int           // 0 keeps none for being new
	OlderThan  time.Duration // 0 takes tags of any age
	Keep       string        // regular expressions of the whole name; "" is none
	Remove     string
	NextAt     time.Time
}
