package tidelock

import (
	"strconv"
	"time"
)

type BuildID int64

// A Build is what came of packaging one application of a delivery repository
// at one commit. A state that failed published nothing.
type Build struct {
	ID          BuildID
	Project     ProjectID
	Ref         RefName
	Commit      CommitID
	Application string      // "" for .tidelock/delivery.yaml itself, which then is at fault
	State       StatusState // StatusSuccess, StatusFailed or, when nothing was new, StatusSkipped
	Image       string      // below the project, as Image.Name
	Tags        []string    // those that point at Digest since
	Digest      Digest      // "" for none
	Layer       Digest      // of the files inside, which many digests may share
	Inputs      Digest      // stands for all that the build was made from
	Watched     []string    // directories outside the application's path that Inputs covers
	Findings    []Finding
	Push        PushID // which caused it; 0 when found by comparison
	CreatedAt   time.Time
	Duration    time.Duration // from the recorded push, or from when it was found
}

// A Finding is something about the files of a delivery repository that people
// should know. One that is not a warning keeps its application from being
// published.
type Finding struct {
	Check   string // such as "schema" or "secrets"
	Path    string // from the root of the repository; "" for none
	Line    int    // 0 for none
	Message string
	Warning bool
}

// String is the finding on one line, the place first.
func (f Finding) String() string {
	switch {
	case f.Path == "":
		return f.Message
	case f.Line == 0:
		return f.Path + ": " + f.Message
	}
	return f.Path + ":" + strconv.Itoa(f.Line) + ": " + f.Message
}

// A BuildFilter narrows a list of builds; zero fields do not.
type BuildFilter struct {
	Project     ProjectID
	Ref         RefName
	Commit      CommitID
	Application string
	Digest      Digest
	State       StatusState
	// LatestOfApplications keeps only the newest of each application and ref.
	LatestOfApplications bool
}
