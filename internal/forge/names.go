package forge

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"tidelock.dev"
)

var (
	// pathPattern is GitLab's rule for one segment of a path.
	pathPattern  = regexp.MustCompile(`^[a-zA-Z0-9_.][a-zA-Z0-9_.-]{0,254}$`)
	agentPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	notInPaths   = regexp.MustCompile(`[^a-zA-Z0-9_.-]+`)
)

// reservedTop are first segments that the forge's own URLs use.
var reservedTop = map[string]bool{
	"-": true, "api": true, "v2": true, "jwt": true, "admin": true, "assets": true, "dashboard": true,
	"explore": true, "groups": true, "health_check": true, "help": true, "login": true, "oauth": true,
	"profile": true, "projects": true, "public": true, "robots.txt": true, "favicon.ico": true,
	"search": true, "snippets": true, "users": true, "user": true, "unsubscribes": true, "uploads": true,
}

// reservedBelow are segments that mean something inside a project's URLs.
var reservedBelow = map[string]bool{
	"-": true, "blob": true, "blame": true, "commits": true, "create": true, "edit": true, "files": true,
	"find_file": true, "info": true, "git-upload-pack": true, "git-receive-pack": true, "new": true,
	"preview": true, "raw": true, "refs": true, "tree": true, "update": true, "wikis": true,
}

// checkPath refuses what cannot be one segment of a path.
func checkPath(field, path string, top bool) error {
	lower := strings.ToLower(path)
	switch {
	case path == "":
		return tidelock.FieldErrorf(tidelock.Invalid, field, "can't be blank")
	case !pathPattern.MatchString(path) || strings.Contains(path, ".."),
		strings.HasSuffix(lower, ".git"), strings.HasSuffix(lower, ".atom"),
		strings.HasSuffix(path, "."):
		return tidelock.FieldErrorf(tidelock.Invalid, field,
			"can contain only letters, digits, '_', '-' and '.'. Cannot start with '-', end with '.', '.git' or '.atom', or contain '..'")
	case top && reservedTop[lower], !top && reservedBelow[lower]:
		return tidelock.FieldErrorf(tidelock.Invalid, field, "%s is a reserved name", path)
	}
	return nil
}

// checkName refuses what cannot be shown as a name.
func checkName(field, name string) error {
	switch {
	case strings.TrimSpace(name) == "":
		return tidelock.FieldErrorf(tidelock.Invalid, field, "can't be blank")
	case utf8.RuneCountInString(name) > 255:
		return tidelock.FieldErrorf(tidelock.Invalid, field, "is too long (maximum is 255 characters)")
	case !utf8.ValidString(name), strings.ContainsFunc(name, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
	}):
		return tidelock.FieldErrorf(tidelock.Invalid, field, "cannot contain control characters")
	}
	return nil
}

func checkDescription(text string) error {
	if len(text) > 8192 {
		return tidelock.FieldErrorf(tidelock.Invalid, "description", "is too long (maximum is 8192 bytes)")
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return tidelock.FieldErrorf(tidelock.Invalid, "description", "must be text")
	}
	return nil
}

// pathFromName derives a path as GitLab does when only a name was given.
func pathFromName(name string) string {
	path := notInPaths.ReplaceAllString(strings.ToLower(strings.TrimSpace(name)), "-")
	return strings.Trim(path, "-.")
}
