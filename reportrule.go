package tidelock

import "time"

// A ReportRule holds the announcement of a project's artifacts until a report,
// such as a scanner's, is attached to them.
type ReportRule struct {
	ID        int64
	Project   ProjectID
	Type      string // the artifactType of the report; one rule for each
	Key       string // in PEM: by which the report must be signed; "" for reports of anybody who may push
	Creator   UserID
	CreatedAt time.Time
}
