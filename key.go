package tidelock

import "time"

type KeyID int64

// A Key is a public SSH key. It belongs to a person, or is a deploy key: then
// it stands for nobody, and opens the projects and groups where it is enabled.
// A fingerprint has one key, and so one owner.
type Key struct {
	ID          KeyID
	User        UserID // whose it is; 0 for a deploy key
	Title       string // titles may repeat
	Public      string // a line of authorized_keys: type, key and comment
	Fingerprint string // as ssh-keygen prints it: SHA256:…
	Creator     UserID
	CreatedAt   time.Time
	ExpiresAt   time.Time // zero for never
	LastUsed    time.Time // zero for never; written at most once a minute
}

// Active reports whether the key is good at a time.
func (k Key) Active(now time.Time) bool { return k.ExpiresAt.IsZero() || now.Before(k.ExpiresAt) }

// A DeployKey is a deploy key as it is enabled in one project, or in one group
// and so in everything below. Each has its own title for it, and its own word
// on whether it may push.
type DeployKey struct {
	Key
	Holder
	CanPush   bool
	EnabledAt time.Time
}

// A KeyFilter narrows a list of keys; zero fields do not.
type KeyFilter struct {
	User        UserID
	Fingerprint string
	Deploy      bool // deploy keys only
}
