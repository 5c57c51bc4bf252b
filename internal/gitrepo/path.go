package gitrepo

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"tidelock.dev"
)

// maxDepth is how deep a new file may lie.
const maxDepth = 100

// newPath reports, as an error of kind Invalid, why no file may be made at p.
// Beyond what no repository can hold, it refuses every name that some file
// system takes for ".git", as git does with core.protectHFS and
// core.protectNTFS, so that no checkout of the commit is dangerous anywhere,
// and control characters, which would reach the terminals of others.
func newPath(p string) error {
	if err := validPath(p); err != nil {
		return err
	}
	if !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl) {
		return tidelock.Errorf(tidelock.Invalid, "path %.200q has a control character or is not UTF-8", p)
	}
	if strings.Count(p, "/") >= maxDepth {
		return tidelock.Errorf(tidelock.Invalid, "path %.200q is deeper than %d directories", p, maxDepth)
	}
	for segment := range strings.SplitSeq(p, "/") {
		if isDotGitHFS(segment) || isDotGitNTFS(segment) {
			return tidelock.Errorf(tidelock.Invalid, "path %.200q has a segment that a file system could take for .git", p)
		}
	}
	return nil
}

// isDotGitHFS reports whether HFS+, which ignores case and some characters
// that are not seen, takes a name for ".git".
func isDotGitHFS(name string) bool {
	seen := strings.Map(func(r rune) rune {
		switch {
		case r >= 0x200c && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x206a && r <= 0x206f, r == 0xfeff:
			return -1
		}
		return r
	}, name)
	return strings.EqualFold(seen, ".git")
}

// isDotGitNTFS reports whether Windows, which ignores case, dots and spaces at
// the end and what follows a colon, knows a short name, and separates by
// backslashes too, takes part of a name for ".git".
func isDotGitNTFS(name string) bool {
	for part := range strings.SplitSeq(name, `\`) {
		part, _, _ = strings.Cut(part, ":")
		part = strings.ToLower(strings.TrimRight(part, ". "))
		if part == ".git" || part == "git~1" {
			return true
		}
	}
	return false
}
