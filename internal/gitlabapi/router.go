package gitlabapi

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// A handler answers one route. An error becomes the whole answer.
type handler func(w http.ResponseWriter, r *request) error

// A route is one line of the table in routes.go. In its pattern, ":name"
// stands for any one segment of the escaped path.
type route struct {
	method  string
	pattern string
	handle  handler
}

// A node is a place in the tree of routes. Literal segments win over ":name".
//
// http.ServeMux is not used: it cleans the decoded path first, and so answers
// a redirect to names that hold an escaped slash.
type node struct {
	literal map[string]*node
	any     *node
	routes  map[string]route // by method; none where no pattern ends
}

func newTree(table []route) *node {
	root := &node{}
	for _, r := range table {
		at := root
		for segment := range strings.SplitSeq(strings.Trim(r.pattern, "/"), "/") {
			at = at.child(segment)
		}
		if at.routes == nil {
			at.routes = map[string]route{}
		}
		if _, twice := at.routes[r.method]; twice {
			panic("gitlabapi: two routes for " + r.method + " " + r.pattern)
		}
		at.routes[r.method] = r
	}
	return root
}

func (n *node) child(segment string) *node {
	if strings.HasPrefix(segment, ":") {
		if n.any == nil {
			n.any = &node{}
		}
		return n.any
	}
	if n.literal == nil {
		n.literal = map[string]*node{}
	}
	if n.literal[segment] == nil {
		n.literal[segment] = &node{}
	}
	return n.literal[segment]
}

// find returns the route of an escaped path and the values of its ":name"
// segments, unescaped exactly once.
func (n *node) find(method, escaped string) (route, map[string]string, error) {
	segments, ok := splitPath(escaped)
	if !ok {
		return route{}, nil, errNoRoute
	}
	leaf, values := n.walk(segments, nil)
	if leaf == nil {
		return route{}, nil, errNoRoute
	}
	r, ok := leaf.routes[method]
	if !ok && method == http.MethodHead {
		r, ok = leaf.routes[http.MethodGet]
	}
	if !ok {
		return route{}, nil, errMethod(slices.Sorted(maps.Keys(leaf.routes)))
	}
	args := map[string]string{}
	for segment := range strings.SplitSeq(r.pattern, "/") {
		if name, ok := strings.CutPrefix(segment, ":"); ok {
			args[name], values = values[0], values[1:]
		}
	}
	return r, args, nil
}

func (n *node) walk(segments, values []string) (*node, []string) {
	if len(segments) == 0 {
		if n.routes == nil {
			return nil, nil
		}
		return n, values
	}
	if next := n.literal[segments[0]]; next != nil {
		if leaf, found := next.walk(segments[1:], values); leaf != nil {
			return leaf, found
		}
	}
	if n.any != nil {
		return n.any.walk(segments[1:], append(slices.Clip(values), segments[0]))
	}
	return nil, nil
}

// maxSegments is more than any route has.
const maxSegments = 12

// splitPath cuts an escaped path at its slashes and unescapes every segment
// once. It refuses what could mean something else to whoever reads it next:
// empty segments, "." and "..", also between escaped slashes, control
// characters and bytes that are not text.
func splitPath(escaped string) ([]string, bool) {
	escaped = strings.TrimSuffix(strings.TrimPrefix(escaped, "/"), "/")
	if strings.Count(escaped, "/") >= maxSegments {
		return nil, false
	}
	segments := strings.Split(escaped, "/")
	for i, s := range segments {
		s, err := url.PathUnescape(s)
		if err != nil || !cleanSegment(s) {
			return nil, false
		}
		segments[i] = s
	}
	return segments, true
}

func cleanSegment(s string) bool {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}
