// Package storetest says what a forge.Store must do, as a suite of tests that
// every implementation runs. It also lends tests a PostgreSQL server.
package storetest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// Run runs the suite. Each test opens a store of its own, which must be empty.
func Run(t *testing.T, open func(t *testing.T) forge.Store) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"Users", userTests},
		{"Namespaces", namespaceTests},
		{"Projects", projectTests},
		{"Members", memberTests},
		{"Branches", branchTests},
		{"Protection", protectionTests},
		{"Tokens", tokenTests},
		{"Keys", keyTests},
		{"TokenFamilies", familyTests},
		{"Shares", shareTests},
		{"ReportRules", reportRuleTests},
		{"Owners", ownerTests},
		{"Variables", variableTests},
		{"Changes", changeTests},
		{"AuditEvents", auditTests},
		{"Pushes", pushTests},
		{"Agents", agentTests},
		{"Announcements", announcementTests},
		{"AgentSources", agentSourceTests},
		{"Observations", observationTests},
		{"Rollouts", rolloutTests},
		{"Hooks", hookTests},
		{"Notices", noticeTests},
		{"Statuses", statusTests},
		{"Builds", buildTests},
		{"Images", imageTests},
		{"Environments", environmentTests},
		{"History", historyTests},
		{"Traces", traceTests},
		{"All", generalTests},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, test := range group.tests {
				t.Run(test.name, func(t *testing.T) {
					test.run(world{T: t, Store: open(t)})
				})
			}
		})
	}
}

type test struct {
	name string
	run  func(world)
}

// A world is a store with ways to fill it that fail the test on an error.
type world struct {
	*testing.T
	forge.Store
}

// start is the first moment of the tests, with more digits than are kept.
var start = time.Date(2026, 3, 1, 12, 30, 15, 123_456_789, time.FixedZone("", 3600))

// at returns a moment in the form a store returns it.
func at(after time.Duration) time.Time {
	return start.Add(after).UTC().Truncate(time.Microsecond)
}

var everything = tidelock.Page{}

func (w world) user(name string) tidelock.User {
	w.Helper()
	u, err := w.CreateUser(w.Context(), tidelock.User{Username: name, Name: "Name of " + name})
	w.ok(err)
	return u
}

func (w world) group(parent tidelock.NamespaceID, path string) tidelock.Namespace {
	w.Helper()
	n, err := w.CreateNamespace(w.Context(), tidelock.Namespace{Parent: parent, Path: path, Name: "Group " + path}, 0)
	w.ok(err)
	return n
}

func (w world) project(in tidelock.NamespaceID, path string) tidelock.Project {
	w.Helper()
	p, err := w.CreateProject(w.Context(), tidelock.Project{Namespace: in, Path: path, Name: "Project " + path, DefaultBranch: "main"})
	w.ok(err)
	return p
}

// site makes a project where it does not matter which.
func (w world) site() tidelock.Project {
	w.Helper()
	return w.project(w.group(0, "team").ID, "site")
}

func (w world) agent(project tidelock.ProjectID, name string) tidelock.Agent {
	w.Helper()
	a, err := w.CreateAgent(w.Context(), tidelock.Agent{Project: project, Name: name})
	w.ok(err)
	return a
}

func (w world) member(h tidelock.Holder, user tidelock.UserID, level tidelock.AccessLevel) {
	w.Helper()
	w.ok(w.SetMember(w.Context(), tidelock.Member{Holder: h, User: user, Level: level}))
}

// push records a push of branches, given as "name=object"; no object deletes.
func (w world) push(project tidelock.ProjectID, branches ...string) tidelock.Push {
	w.Helper()
	p := tidelock.Push{Project: project, At: start}
	for _, b := range branches {
		name, object, _ := strings.Cut(b, "=")
		p.Updates = append(p.Updates, tidelock.RefUpdate{Ref: tidelock.BranchRef(name), New: tidelock.CommitID(object), Commit: tidelock.CommitID(object)})
	}
	p, err := w.RecordPush(w.Context(), p)
	w.ok(err)
	return p
}

func (w world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("unexpected error: %v", err)
	}
}

func (w world) kind(err error, want tidelock.Kind) {
	w.Helper()
	if got := tidelock.KindOf(err); err == nil || got != want {
		w.Fatalf("got error %v of kind %v, want one of kind %v", err, got, want)
	}
}

// taken checks that an error says an attribute is not unique, in the words
// that clients of GitLab look for.
func (w world) taken(err error, field string) {
	w.Helper()
	w.kind(err, tidelock.Conflict)
	if got, want := err.Error(), field+" has already been taken"; got != want {
		w.Fatalf("got error %q, want %q", got, want)
	}
}

func equal[T any](t testing.TB, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("got other than wanted (-want +got):\n%s", diff)
	}
}

// names lists what was listed by one attribute, and checks its count.
func names[T any](w world, name func(T) string) func([]T, int, error) string {
	return func(items []T, total int, err error) string {
		w.Helper()
		w.ok(err)
		if items == nil {
			w.Fatal("got a nil list, want an empty one")
		}
		if total != len(items) {
			w.Fatalf("got total %d of %d items", total, len(items))
		}
		var all []string
		for _, item := range items {
			all = append(all, name(item))
		}
		return strings.Join(all, " ")
	}
}

// together calls fn n times at once and returns the errors.
func together(n int, fn func(i int) error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	ready := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-ready
			errs[i] = fn(i)
		})
	}
	close(ready)
	wg.Wait()
	return errs
}

func succeeded(errs []error) (n int) {
	for _, err := range errs {
		if err == nil {
			n++
		}
	}
	return n
}

// paged checks that a list of n items, in the order given by key, is cut
// into pages and counted.
func paged[T any](w world, n int, key func(T) string, read func(tidelock.Page) ([]T, int, error)) {
	w.Helper()
	whole, total, err := read(everything)
	w.ok(err)
	if len(whole) != n || total != n {
		w.Fatalf("got %d items and total %d, want %d", len(whole), total, n)
	}
	per := n/2 + 1
	for _, tt := range []struct {
		page     tidelock.Page
		from, to int
	}{
		{tidelock.Page{Number: 1, PerPage: per}, 0, per},
		{tidelock.Page{Number: 0, PerPage: per}, 0, per},
		{tidelock.Page{Number: -1, PerPage: per}, 0, per},
		{tidelock.Page{Number: 2, PerPage: per}, per, n},
		{tidelock.Page{Number: 3, PerPage: per}, n, n},
		{tidelock.Page{Number: 1 << 62, PerPage: 1 << 62}, n, n},
		{tidelock.Page{Number: 9, PerPage: 0}, 0, n},
	} {
		items, total, err := read(tt.page)
		w.ok(err)
		if items == nil || total != n {
			w.Fatalf("page %+v: got total %d and items %v, want total %d", tt.page, total, items, n)
		}
		var got, want []string
		for _, item := range items {
			got = append(got, key(item))
		}
		for _, item := range whole[tt.from:tt.to] {
			want = append(want, key(item))
		}
		equal(w, fmt.Sprint(tt.page, got), fmt.Sprint(tt.page, want))
	}
}
