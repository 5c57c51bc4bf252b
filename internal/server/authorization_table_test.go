package server_test

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tidelock.dev"
)

// A surface is one section of the table.
type surface string

const (
	onForge    surface = "forge"
	onGroups   surface = "groups"
	onProject  surface = "projects"
	overHTTP   surface = "git over HTTP"
	overSSH    surface = "git over SSH"
	inLists    surface = "lists"
	inRegistry surface = "registry"
)

// A least is the least that is enough for something.
type least struct {
	word   string
	level  tidelock.AccessLevel // when it is a role
	people bool                 // not with a project or group token
}

var leastWords = map[string]tidelock.AccessLevel{
	"anyone": 0, "user": 0, "person": 0, "admin": 0, "bearer": 0, "itself": 0,
	"guest": tidelock.Guest, "planner": tidelock.Planner, "reporter": tidelock.Reporter,
	"developer": tidelock.Developer, "maintainer": tidelock.Maintainer, "owner": tidelock.Owner,
}

func readLeast(word string) (least, error) {
	bare, people := strings.CutSuffix(word, "*")
	level, ok := leastWords[bare]
	if !ok {
		return least{}, fmt.Errorf("%q is nobody", word)
	}
	return least{word: bare, level: level, people: people}, nil
}

// A row is one line of the table.
type row struct {
	surface surface
	route   string // "METHOD /pattern", or what a git client asks for
	who     map[tidelock.Visibility]least
	scopes  []tidelock.Scope // nil for any
	deploy  []tidelock.Scope // nil for none

	args   map[string]string // for the pattern
	query  string
	body   string
	answer int  // the status of what is allowed
	again  bool // what was done has to be made again
}

func (r row) String() string { return string(r.surface) + ": " + r.route }

func (r row) method() string { method, _, _ := strings.Cut(r.route, " "); return method }

// aboutGroup reports whether the row is about the group of a place.
func (r row) aboutGroup() bool {
	return r.surface == onGroups || r.surface == inLists && r.pattern() != "/projects"
}

func (r row) pattern() string { _, pattern, _ := strings.Cut(r.route, " "); return pattern }

// forPeople reports whether no role is enough for a bot.
func (r row) forPeople() bool { return r.who[tidelock.Private].people }

var visibilities = []tidelock.Visibility{tidelock.Private, tidelock.InternalOnly, tidelock.Public}

// readAuthorization reads the committed table.
func readAuthorization(t *testing.T) []row {
	t.Helper()
	file, err := os.Open("testdata/authorization.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var rows []row
	var at surface
	lines := bufio.NewScanner(file)
	seen := map[string]bool{}
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if name, ok := strings.CutPrefix(line, "== "); ok {
			at = surface(name)
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		r, err := readRow(at, line)
		if err != nil {
			t.Fatalf("authorization.txt:%d: %v", n, err)
		}
		if seen[r.String()] {
			t.Errorf("authorization.txt:%d: %s has two rows", n, r)
		}
		seen[r.String()] = true
		rows = append(rows, r)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return rows
}

func readRow(at surface, line string) (row, error) {
	cells := strings.Split(line, "|")
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	columns := 8
	if at == onForge {
		columns = 6
	}
	if len(cells) != columns {
		return row{}, fmt.Errorf("%d columns, want %d", len(cells), columns)
	}
	r := row{surface: at, route: cells[0], who: map[tidelock.Visibility]least{}}
	who := cells[1 : columns-4]
	for i, v := range visibilities {
		l, err := readLeast(who[min(i, len(who)-1)])
		if err != nil {
			return row{}, err
		}
		r.who[v] = l
	}
	rest := cells[columns-4:]
	if rest[0] != "any" {
		r.scopes = readScopes(rest[0])
	}
	if rest[1] != "-" {
		r.deploy = readScopes(rest[1])
	}
	r.readRequest(rest[2])
	answer, again := strings.CutSuffix(rest[3], " again")
	r.again = again
	var err error
	r.answer, err = strconv.Atoi(answer)
	return r, err
}

func readScopes(words string) []tidelock.Scope {
	scopes := []tidelock.Scope{}
	for word := range strings.FieldsSeq(words) {
		scopes = append(scopes, tidelock.Scope(word))
	}
	slices.Sort(scopes)
	return scopes
}

// readRequest reads "name=value ?query {body}".
func (r *row) readRequest(text string) {
	r.args = map[string]string{}
	if i := strings.Index(text, "{"); i >= 0 {
		text, r.body = text[:i], text[i:]
	}
	for word := range strings.FieldsSeq(text) {
		if query, ok := strings.CutPrefix(word, "?"); ok {
			r.query = query
			continue
		}
		name, value, _ := strings.Cut(word, "=")
		r.args[name] = value
	}
}
