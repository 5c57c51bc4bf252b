package gitserver

import (
	"slices"
	"strings"

	"tidelock.dev"
)

// Commands are all that may be run over SSH, and all of git's services over HTTP.
func Commands() []string { return []string{string(uploadPack), string(receivePack)} }

// A command is what a client asks for over SSH.
type command struct {
	service service
	project string // its path, without .git; empty for what cannot be one
}

// maxCommand bounds the text of a command; the longest path is half of it,
// and quoting makes it longer.
const maxCommand = 8 << 10

func errCommand(format string, args ...any) error {
	return tidelock.Errorf(tidelock.Invalid, format, args...)
}

// notOffered are commands that other servers know, and why they are refused.
var notOffered = map[string]string{
	"git-upload-archive":   "git archive over SSH is not offered; use the API's archive",
	"git-lfs-authenticate": "Git LFS is not offered",
	"git-lfs-transfer":     "Git LFS is not offered",
	"scp":                  "copying files is not offered; only git is",
	"sftp":                 "copying files is not offered; only git is",
	"rsync":                "copying files is not offered; only git is",
}

// parseCommand reads the one form in which git writes a command: a service,
// a space, and a path in git's own quotes. A bare path is taken too, but
// nothing that a shell would have to be asked about: what is not understood
// here to its last byte is refused.
func parseCommand(text string) (command, error) {
	var c command
	if len(text) > maxCommand {
		return c, errCommand("the command is longer than %d bytes", maxCommand)
	}
	verb, rest, _ := strings.Cut(text, " ")
	if verb == "git" { // as in "git upload-pack"
		var second string
		second, rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
		verb = "git-" + second
	}
	if why, ok := notOffered[verb]; ok {
		return c, errCommand("%s", why)
	}
	c.service = service(verb)
	if !slices.Contains(Commands(), verb) {
		return c, errCommand("only git-upload-pack and git-receive-pack may be run here")
	}
	path, err := unquote(strings.Trim(rest, " "))
	if err != nil {
		return c, err
	}
	switch {
	case path == "":
		return c, errCommand("%s needs the path of a project", c.service)
	case path[0] == '-':
		return c, errCommand("%s takes no options", c.service)
	}
	c.project = projectPath(path)
	return c, nil
}

// unquote reads one word, in the form that git writes: between single quotes,
// but for ' and !, which stand outside of them behind a backslash. A word
// without any quotes must be of the plain characters of paths.
func unquote(word string) (string, error) {
	errQuotes := errCommand("the path is not quoted as git quotes it")
	if !strings.HasPrefix(word, "'") {
		if strings.ContainsFunc(word, func(c rune) bool { return !isPlain(c) }) {
			return "", errQuotes
		}
		return word, nil
	}
	var path strings.Builder
	for rest := word; rest != ""; {
		switch {
		case rest[0] == '\'':
			inside, after, closed := strings.Cut(rest[1:], "'")
			if !closed {
				return "", errQuotes
			}
			path.WriteString(inside)
			rest = after
		case strings.HasPrefix(rest, `\'`), strings.HasPrefix(rest, `\!`):
			path.WriteByte(rest[1])
			rest = rest[2:]
		default:
			return "", errQuotes
		}
	}
	return path.String(), nil
}

func isPlain(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("/._-", c)
}
