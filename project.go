package tidelock

import (
	"strings"
	"time"
)

type (
	ProjectID int64
	PushID    int64

	// A CommitID is the full lower-case hexadecimal name of a Git object; the
	// empty string stands for "none", such as before a ref was created.
	CommitID string

	// A RefName is a full ref name, such as refs/heads/main.
	RefName string
)

// Branch returns the short name of a branch, and whether r is one.
func (r RefName) Branch() (string, bool) { return strings.CutPrefix(string(r), "refs/heads/") }

// Tag returns the short name of a tag, and whether r is one.
func (r RefName) Tag() (string, bool) { return strings.CutPrefix(string(r), "refs/tags/") }

// BranchRef returns the full name of a branch.
func BranchRef(name string) RefName { return RefName("refs/heads/" + name) }

// TagRef returns the full name of a tag.
func TagRef(name string) RefName { return RefName("refs/tags/" + name) }

// A Project is one Git repository and what belongs to it. Its id never
// changes; its path may, and old paths keep leading to it until reused.
type Project struct {
	ID            ProjectID
	Namespace     NamespaceID
	Path          string // one segment
	FullPath      string // namespace included; unique without regard to case
	Name          string
	FullName      string // "Group / Sub / Name"
	Description   string
	Visibility    Visibility
	DefaultBranch string // short name; the branch may not exist yet
	Archived      bool
	Creator       UserID
	CreatedAt     time.Time
	UpdatedAt     time.Time
}

// A Head is where a ref points now. Object is what the ref names; Commit is
// the same, but for an annotated tag it is the commit behind the tag.
//
// The head of an image's tag has a Digest and no Object; Commit is that from
// which the artifact was made, if it says so.
type Head struct {
	Project ProjectID
	Image   ImageID // 0 for a Git ref
	Ref     RefName
	Object  CommitID
	Commit  CommitID
	Digest  Digest
	Push    PushID // the push that moved it here; 0 when found by comparison
	MovedAt time.Time
	Trace   string // of Push
}

// Goal is what a source that follows the ref should have.
func (h Head) Goal() Goal { return Goal{Ref: h.Ref, Commit: h.Commit, Digest: h.Digest} }

// A RefUpdate is one ref that moved. Old is empty when the ref was created,
// New and Commit are empty when it was deleted.
type RefUpdate struct {
	Ref    RefName
	Old    CommitID
	New    CommitID
	Commit CommitID // New, peeled
}

// A Push is a set of refs that moved together, or one manifest that was taken
// into an image. It is a fact: it already happened on disk.
type Push struct {
	ID        PushID
	Project   ProjectID
	By        UserID  // 0 when unknown: found by comparing refs with heads, or a deploy token
	Token     TokenID // 0 when unknown, or not made with a token
	Key       KeyID   // 0 when not made with an SSH key
	At        time.Time
	Announced bool   // the bus has been told
	Trace     string // W3C traceparent under which what follows is traced; "" for untraced
	Updates   []RefUpdate
	Artifact  *ArtifactUpdate // nil for a push of commits, and then Updates is not empty
}

// A ProtectedBranch names branches (by name or by pattern with *) that only
// members of PushLevel or above, and the deploy keys in Keys, may push to, that
// nobody may delete by git, and that may be force-pushed only if AllowForce.
type ProtectedBranch struct {
	ID         int64
	Project    ProjectID
	Pattern    string
	PushLevel  AccessLevel // NoAccess: nobody
	MergeLevel AccessLevel
	AllowForce bool
	Keys       []KeyID // in order
}

// Matches reports whether the pattern covers a branch's short name: "*"
// stands for any run of characters, slashes included.
func (p ProtectedBranch) Matches(branch string) bool {
	return matchWildcard(p.Pattern, branch)
}

// A ProtectedTag names tags (by name or by pattern with *) that only members of
// CreateLevel or above may create, and that nobody may move, or delete by git.
type ProtectedTag struct {
	ID          int64
	Project     ProjectID
	Pattern     string
	CreateLevel AccessLevel // NoAccess: nobody
}

// Matches reports whether the pattern covers a tag's short name, as for
// branches.
func (p ProtectedTag) Matches(tag string) bool {
	return matchWildcard(p.Pattern, tag)
}

func matchWildcard(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	rest, ok := strings.CutPrefix(name, parts[0])
	if !ok {
		return false
	}
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		_, after, found := strings.Cut(rest, part)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, parts[last])
}

// ValidCommit refuses what is not a full, lower-case object name.
func ValidCommit(id CommitID) error {
	if len(id) != 40 && len(id) != 64 {
		return Errorf(Invalid, "%q is not a full commit id", string(id))
	}
	for _, c := range id {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return Errorf(Invalid, "%q is not a full commit id", string(id))
		}
	}
	return nil
}
