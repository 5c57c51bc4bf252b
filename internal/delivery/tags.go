package delivery

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"

	"tidelock.dev"
)

// shortCommit is how many digits of a commit make a tag, as in GitLab's
// CI_COMMIT_SHORT_SHA.
const shortCommit = 8

// delivers reports whether pushes to a branch are packaged.
func (c Settings) delivers(branch, defaultBranch string) bool {
	if len(c.Branches) == 0 {
		return branch == defaultBranch
	}
	return slices.ContainsFunc(c.Branches, func(pattern string) bool {
		return tidelock.ProtectedBranch{Pattern: pattern}.Matches(branch)
	})
}

// branchTags are the tags that an artifact of a branch gets. A default branch
// that only keeps state moves none that a cluster follows.
func (c Settings) branchTags(app Application, branch, defaultBranch string, commit tidelock.CommitID) []string {
	triggers := c.Trigger || branch != defaultBranch
	var tags []string
	for _, rule := range app.Tags {
		tag := ""
		switch {
		case rule == TagLatest && triggers && branch == defaultBranch:
			tag = "latest"
		case rule == TagBranch && triggers && (branch == defaultBranch || branchTag(branch) != branchTag(defaultBranch)):
			tag = branchTag(branch)
		case rule == TagCommit:
			tag = string(commit[:shortCommit])
		}
		if tag != "" && !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	return tags
}

var notInTag = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

// branchTag is a branch as a tag; "" for one that no tag can be named after,
// or that would be taken for a release or for the latest artifact of the
// default branch.
func branchTag(branch string) string {
	tag := notInTag.ReplaceAllString(branch, "-")
	if strings.HasPrefix(tag, ".") || strings.HasPrefix(tag, "-") || len(tag) > 128 {
		return "" // cut, it would be that of another branch
	}
	if _, version := parseVersion(tag); version || tag == "latest" {
		return ""
	}
	return tag
}

// A release is a Git tag that is a version, of all applications or of one:
// "v1.2.3" or "shop/v1.2.3".
type release struct {
	application string // "" for all
	tag         string // of the image
}

// releaseOf reads a Git tag.
func releaseOf(name string) (release, bool) {
	application, version, ofOne := strings.Cut(name, "/")
	if !ofOne {
		application, version = "", name
	}
	tag, ok := parseVersion(version)
	if !ok || ofOne && application == "" {
		return release{}, false
	}
	return release{application, tag}, true
}

// parseVersion reads a full version, with "v" before it or without. A tag of
// an image has "_" for the "+" of a version.
func parseVersion(text string) (tag string, ok bool) {
	_, err := semver.StrictNewVersion(strings.TrimPrefix(text, "v"))
	return strings.ReplaceAll(text, "+", "_"), err == nil && len(text) <= 128
}

// concerns reports whether a release is one of an application.
func (r release) concerns(app Application) bool {
	return cmp.Or(r.application, app.Name) == app.Name && slices.Contains(app.Tags, TagSemVer)
}
