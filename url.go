package tidelock

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// A URLSet is the set of URLs under which one forge serves git: its external
// URL, aliases of it, and the ssh form. The zero value holds none.
//
// Server and agent ask it the same question, which of a cluster's sources
// belong to the forge, so that both have the same answer.
type URLSet struct {
	bases []gitBase
}

// A gitBase is a URL below which projects are found.
type gitBase struct {
	ssh  bool
	host string // lower case, no dot at the end
	port string // "" for the default of the scheme
	root string // "" or "/sub", the path before every project's
}

// ParseURLSet reads base URLs such as "https://forge.example/root" and
// "ssh://git@forge.example:2222". User info is ignored.
func ParseURLSet(bases ...string) (URLSet, error) {
	var s URLSet
	for _, text := range bases {
		base, path, err := splitGitURL(text)
		if err != nil {
			return URLSet{}, fmt.Errorf("base URL %q: %w", redactURL(text), err)
		}
		base.root = strings.TrimRight(path, "/")
		s.bases = append(s.bases, base)
	}
	// A root inside another one is looked for first.
	slices.SortStableFunc(s.bases, func(a, b gitBase) int { return cmp.Compare(len(b.root), len(a.root)) })
	return s, nil
}

// ProjectPath returns the full path of the project that a git URL names, as
// the URL spells it, and whether it lies under one of the set's URLs at all.
// Whether such a project exists is another question.
//
// Host, root and path are compared without regard to case. User info, a
// port that is the scheme's default, ".git" and a slash at the end make no
// difference. http and https on their default ports are one.
func (s URLSet) ProjectPath(gitURL string) (fullPath string, ok bool) {
	base, path, err := splitGitURL(gitURL)
	if err != nil {
		return "", false
	}
	for _, b := range s.bases {
		if b.ssh != base.ssh || b.host != base.host || b.port != base.port {
			continue
		}
		if len(path) <= len(b.root) || !strings.EqualFold(path[:len(b.root)], b.root) || path[len(b.root)] != '/' {
			continue
		}
		if fullPath, ok := cleanProjectPath(path[len(b.root):]); ok {
			return fullPath, true
		}
	}
	return "", false
}

// ImagePath returns the path of the image that the URL of an OCIRepository or
// of an OCI HelmRepository names, in lower case, and whether the registry of
// the forge serves it. Registries are found at the root of a host, so the path
// of a base URL is no part of it.
func (s URLSet) ImagePath(ociURL string) (path string, ok bool) {
	const scheme = "oci://"
	if len(ociURL) < len(scheme) || !strings.EqualFold(ociURL[:len(scheme)], scheme) {
		return "", false
	}
	given, path, err := splitGitURL("https://" + ociURL[len(scheme):])
	if err != nil || strings.ContainsAny(path, ":@") {
		return "", false
	}
	for _, b := range s.bases {
		// A plain registry on port 80 is one that Flux is told to be insecure.
		if !b.ssh && b.host == given.host && (b.port == given.port || b.port == "" && given.port == "80") {
			path, ok := cleanPath(path)
			return strings.ToLower(path), ok
		}
	}
	return "", false
}

func splitGitURL(text string) (gitBase, string, error) {
	u, err := url.Parse(text)
	if err != nil {
		return gitBase{}, "", Errorf(Invalid, "is not a URL")
	}
	base := gitBase{
		host: strings.TrimSuffix(strings.ToLower(u.Hostname()), "."),
		port: u.Port(),
	}
	defaultPort := ""
	switch strings.ToLower(u.Scheme) {
	case "http":
		defaultPort = "80"
	case "https":
		defaultPort = "443"
	case "ssh":
		defaultPort, base.ssh = "22", true
	default:
		return gitBase{}, "", Errorf(Invalid, "must begin with http://, https:// or ssh://")
	}
	switch {
	case base.host == "":
		return gitBase{}, "", Errorf(Invalid, "has no host")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return gitBase{}, "", Errorf(Invalid, "has a query or a fragment")
	case strings.Contains(strings.ToLower(u.RawPath), "%2f"):
		return gitBase{}, "", Errorf(Invalid, "has an escaped slash")
	}
	if base.port == defaultPort {
		base.port = ""
	}
	return base, u.Path, nil
}

// cleanProjectPath takes the slashes and the ending off a project's path, and
// refuses what can be no project's.
func cleanProjectPath(path string) (string, bool) {
	path = strings.TrimRight(path, "/")
	if cut := len(path) - len(".git"); cut >= 0 && strings.EqualFold(path[cut:], ".git") {
		path = path[:cut]
	}
	return cleanPath(path)
}

// cleanPath takes off the slashes around a path, and refuses fewer than two
// segments, empty ones, and dots.
func cleanPath(path string) (string, bool) {
	path = strings.TrimRight(strings.TrimPrefix(path, "/"), "/")
	segments := strings.Split(path, "/")
	if len(segments) < 2 {
		return "", false
	}
	for _, segment := range segments {
		if segment == "" || segment == "." || segment == ".." {
			return "", false
		}
	}
	return path, true
}

// redactURL hides what may be a password, even in what is hardly a URL.
func redactURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "[not a URL]"
	}
	return u.Redacted()
}
