package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tidelock.dev"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/store/storetest"
)

// A copied dump is one whose texts are in memory.
type copied struct {
	store.Dump
	texts map[string]*bytes.Buffer
}

type closing struct{ io.Writer }

func (closing) Close() error { return nil }

func dump(t *testing.T, url string) copied {
	t.Helper()
	c := copied{texts: map[string]*bytes.Buffer{}}
	var err error
	c.Dump, err = store.WriteDump(t.Context(), url, func(table string) (io.WriteCloser, error) {
		c.texts[table] = &bytes.Buffer{}
		return closing{c.texts[table]}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c copied) open(table string) (io.ReadCloser, error) {
	text, ok := c.texts[table]
	if !ok {
		return nil, fmt.Errorf("no text of %s", table)
	}
	return io.NopCloser(bytes.NewReader(text.Bytes())), nil
}

// rows are the lines of a table in some fixed order.
func (c copied) rows(table string) []string {
	return slices.Sorted(strings.Lines(c.texts[table].String()))
}

// furnish puts something into a store that is hard to copy: bytes that are no
// text, text of all sorts, references forward, ids that are gone.
func furnish(t *testing.T, db *store.DB) (site tidelock.Project) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ada, err := db.CreateUser(ctx, tidelock.User{Username: "Ada", Name: "Ada \"Łoś\" \u2028 <b>\\ 🦌", Admin: true})
	must(err)
	team, err := db.CreateNamespace(ctx, tidelock.Namespace{Path: "team", Name: "Team"}, ada.ID)
	must(err)
	web, err := db.CreateNamespace(ctx, tidelock.Namespace{Parent: team.ID, Path: "web", Name: "Web"}, ada.ID)
	must(err)
	site, err = db.CreateProject(ctx, tidelock.Project{Namespace: web.ID, Path: "site", Name: "Site", DefaultBranch: "main"})
	must(err)
	for i := range 250 { // more than one INSERT
		_, err = db.RecordPush(ctx, tidelock.Push{Project: site.ID, By: ada.ID, Updates: []tidelock.RefUpdate{
			{Ref: tidelock.RefName(fmt.Sprintf("refs/heads/\xff\x00%d", i)), New: "c1", Commit: "c1"},
		}})
		must(err)
	}
	gone, err := db.CreateProject(ctx, tidelock.Project{Namespace: web.ID, Path: "gone", Name: "Gone", DefaultBranch: "main"})
	must(err)
	must(db.DeleteProject(ctx, gone.ID))
	return site
}

// What is loaded from a dump is what was dumped, from and into any engine, and
// ids go on where they were.
func TestDumpAndLoad(t *testing.T) {
	for _, from := range engines {
		for _, to := range engines {
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				source, target := from.url(t), to.url(t)
				site := furnish(t, open(t, source))
				before := dump(t, source)
				if err := before.Validate(); err != nil {
					t.Fatal(err)
				}
				for _, table := range before.Tables {
					if err := table.Check(before.texts[table.Name]); err != nil {
						t.Error(err)
					}
				}
				before = dump(t, source) // Check has read the texts
				if err := before.Vacant(t.Context(), target); err != nil {
					t.Fatal(err)
				}
				ready := false
				if err := before.Load(t.Context(), target, before.open, func() error { ready = true; return nil }); err != nil {
					t.Fatal(err)
				}
				if !ready {
					t.Error("ready was not called")
				}
				after := dump(t, target)
				if before.Schema != after.Schema || len(before.Tables) != len(after.Tables) {
					t.Errorf("got schema %d with %d tables, want %d with %d", after.Schema, len(after.Tables), before.Schema, len(before.Tables))
				}
				for _, table := range before.Tables {
					if diff := cmp.Diff(before.rows(table.Name), after.rows(table.Name)); diff != "" {
						t.Errorf("table %s (-before +after):\n%s", table.Name, diff)
					}
				}
				db := open(t, target)
				got, err := db.Project(t.Context(), site.ID)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(site, got); diff != "" {
					t.Errorf("project (-before +after):\n%s", diff)
				}
				next, err := db.CreateProject(t.Context(), tidelock.Project{Namespace: site.Namespace, Path: "next", Name: "Next", DefaultBranch: "main"})
				if err != nil {
					t.Fatal(err)
				}
				if next.ID != site.ID+2 {
					t.Errorf("the next project has id %d, want %d: that between is of one that was deleted", next.ID, site.ID+2)
				}
				// References hold again, and are checked at once.
				_, err = db.CreateProject(t.Context(), tidelock.Project{Namespace: 999, Path: "x", Name: "X", DefaultBranch: "main"})
				if tidelock.KindOf(err) != tidelock.NotFound {
					t.Errorf("a project in no namespace: got %v, want not found", err)
				}
				if err := before.Vacant(t.Context(), target); tidelock.KindOf(err) != tidelock.Conflict {
					t.Errorf("a full database: got %v, want a conflict", err)
				}
				if err := before.Load(t.Context(), target, before.open, nil); tidelock.KindOf(err) != tidelock.Conflict {
					t.Errorf("into a full database: got %v, want a conflict", err)
				}
			})
		}
	}
}

// A dump is of one moment, whatever is written meanwhile.
func TestDumpIsOfOneMoment(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine.name, func(t *testing.T) {
			url := engine.url(t)
			db := open(t, url)
			site := furnish(t, db)
			tables := 0
			c := copied{texts: map[string]*bytes.Buffer{}}
			d, err := store.WriteDump(t.Context(), url, func(table string) (io.WriteCloser, error) {
				// One more push between any two tables.
				_, err := db.RecordPush(t.Context(), tidelock.Push{Project: site.ID, Updates: []tidelock.RefUpdate{
					{Ref: tidelock.BranchRef(fmt.Sprint("late", tables)), New: "c2", Commit: "c2"},
				}})
				tables++
				c.texts[table] = &bytes.Buffer{}
				return closing{c.texts[table]}, err
			})
			if err != nil {
				t.Fatal(err)
			}
			c.Dump = d
			pushes, updates, heads := len(c.rows("pushes")), len(c.rows("push_updates")), len(c.rows("heads"))
			if pushes != 250 && pushes != 251 || updates != pushes || heads != pushes {
				t.Errorf("got %d pushes, %d updates and %d heads, want as many of each", pushes, updates, heads)
			}
			if err := c.Load(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "copy.db"), c.open, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDumpRefuses(t *testing.T) {
	missing := "sqlite:" + filepath.Join(t.TempDir(), "none.db")
	none := func(string) (io.WriteCloser, error) { return nil, errors.New("not to be called") }
	if _, err := store.WriteDump(t.Context(), missing, none); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("a missing file: got %v, want not found", err)
	}
	if _, err := store.WriteDump(t.Context(), storetest.Postgres(t), none); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("an empty schema: got %v, want not found", err)
	}
}

// When a dump cannot be loaded, the database stays vacant.
func TestLoadAllOrNothing(t *testing.T) {
	source := engines[0].url(t)
	furnish(t, open(t, source))
	for _, engine := range engines {
		for _, tc := range []struct {
			name  string
			spoil func(*copied)
			ready error
		}{
			{name: "a row that is no row", spoil: func(c *copied) { c.texts["users"].WriteString("[1]\n") }},
			{name: "a row too few", spoil: func(c *copied) { c.texts["heads"].Truncate(0) }},
			{name: "a missing text", spoil: func(c *copied) { delete(c.texts, "tokens") }},
			{name: "a missing table", spoil: func(c *copied) { c.Tables = c.Tables[1:] }},
			{name: "a reference to nothing", spoil: func(c *copied) {
				c.texts["projects"].Reset()
				for i := range c.Tables {
					if c.Tables[i].Name == "projects" {
						c.Tables[i].Rows = 0
					}
				}
			}},
			{name: "a table that is none", spoil: func(c *copied) { c.Tables[0].Name = `users"; DROP TABLE users; --` }},
			{name: "a newer schema", spoil: func(c *copied) { c.Schema = 9999 }},
			{name: "who waits for it fails", spoil: func(*copied) {}, ready: errors.New("disk full")},
			{name: "a row twice", spoil: func(c *copied) {
				line, _ := c.texts["users"].ReadString('\n')
				c.texts["users"].WriteString(line + line)
				for i := range c.Tables {
					if c.Tables[i].Name == "users" {
						c.Tables[i].Rows++
					}
				}
			}},
		} {
			t.Run(engine.name+"/"+tc.name, func(t *testing.T) {
				c := dump(t, source)
				tc.spoil(&c)
				target := engine.url(t)
				if err := c.Load(t.Context(), target, c.open, func() error { return tc.ready }); err == nil {
					t.Fatal("it was loaded")
				}
				if engine.name == "sqlite" {
					return // whoever restores a file removes it
				}
				if err := dump(t, source).Vacant(t.Context(), target); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		}
	}
}

func TestLoadIsCancelled(t *testing.T) {
	source := engines[0].url(t)
	furnish(t, open(t, source))
	c := dump(t, source)
	ctx, cancel := context.WithCancel(t.Context())
	target := engines[0].url(t)
	err := c.Load(ctx, target, func(table string) (io.ReadCloser, error) {
		if table == "pushes" {
			cancel()
		}
		return c.open(table)
	}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}
