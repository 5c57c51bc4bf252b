package tidelock

import "time"

// A Share makes the members of a group, and of the groups above it, members of
// a project, with their own level there or that of the share, whichever is
// lower.
type Share struct {
	Project   ProjectID
	Group     NamespaceID
	Level     AccessLevel
	ExpiresAt time.Time // zero for never
	CreatedAt time.Time
}
