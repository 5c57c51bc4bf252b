package tidelock

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// What a file system and a database row hold comfortably. A ref is a file
// named after its last component, and its lock adds ".lock".
const (
	maxRefName      = 1000
	maxRefComponent = 255 - len(".lock")
)

// ValidRef reports, as an error of kind Invalid, why name cannot be a ref
// here. It accepts what `git check-ref-format` accepts, less a few names that
// hurt somewhere: those outside refs/, with a short name that starts with "-"
// (an option to every tool), with characters that are not UTF-8 or control a
// terminal, the branch HEAD, and very long ones.
func ValidRef(name RefName) error {
	s := string(name)
	if len(s) > maxRefName {
		return Errorf(Invalid, "ref name %.40q… is longer than %d bytes", s, maxRefName)
	}
	short, ok := strings.CutPrefix(s, "refs/")
	if !ok {
		return Errorf(Invalid, "ref name %q does not start with refs/", s)
	}
	if kind, rest, ok := strings.Cut(short, "/"); ok && kind != "" {
		short = rest
	}
	switch {
	case strings.HasPrefix(short, "-"):
		return Errorf(Invalid, "ref name %q has a short name that starts with -", s)
	case name == BranchRef("HEAD"):
		return Errorf(Invalid, "a branch cannot be named HEAD")
	case strings.HasSuffix(s, "."):
		return Errorf(Invalid, "ref name %q ends with a dot", s)
	case strings.Contains(s, ".."):
		return Errorf(Invalid, "ref name %q contains ..", s)
	case strings.Contains(s, "@{"):
		return Errorf(Invalid, "ref name %q contains @{", s)
	case strings.ContainsAny(s, ` ~^:?*[\`):
		return Errorf(Invalid, `ref name %q contains a space or one of ~^:?*[\`, s)
	case !utf8.ValidString(s):
		return Errorf(Invalid, "ref name %q is not UTF-8", s)
	case strings.ContainsFunc(s, unicode.IsControl):
		return Errorf(Invalid, "ref name %q contains a control character", s)
	}
	for component := range strings.SplitSeq(s, "/") {
		switch {
		case component == "":
			return Errorf(Invalid, "ref name %q has an empty component", s)
		case strings.HasPrefix(component, "."):
			return Errorf(Invalid, "ref name %q has a component that starts with a dot", s)
		case strings.HasSuffix(component, ".lock"):
			return Errorf(Invalid, "ref name %q has a component that ends with .lock", s)
		case len(component) > maxRefComponent:
			return Errorf(Invalid, "ref name %.40q… has a component longer than %d bytes", s, maxRefComponent)
		}
	}
	return nil
}
