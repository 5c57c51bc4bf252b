package store_test

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/store/storetest"
)

// engines returns the URL of an empty database of an engine, by its name.
var engines = []struct {
	name string
	url  func(testing.TB) string
}{
	{"sqlite", func(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "tidelock.db") }},
	{"postgres", storetest.Postgres},
}

func TestOpenKeepsWhatIsThere(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine.name, func(t *testing.T) {
			url := engine.url(t)
			first := open(t, url)
			want, err := first.CreateUser(t.Context(), tidelock.User{Username: "ada"})
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := open(t, url).UserByName(t.Context(), "ada")
			if err != nil || got != want {
				t.Fatalf("got %v, %v, want %v", got, err, want)
			}
		})
	}
}

func TestOpenAtOnce(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine.name, func(t *testing.T) {
			url := engine.url(t)
			var wg sync.WaitGroup
			stores := make([]*store.DB, 4)
			errs := make([]error, len(stores))
			for i := range stores {
				wg.Go(func() { stores[i], errs[i] = store.Open(t.Context(), store.Config{URL: url}) })
			}
			wg.Wait()
			for i, err := range errs {
				if err != nil {
					t.Errorf("open %d: %v", i, err)
					continue
				}
				if err := stores[i].Ping(t.Context()); err != nil {
					t.Error(err)
				}
				if err := stores[i].Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Two servers on one database must agree as two goroutines of one do.
func TestTwoStoresOnOneDatabase(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine.name, func(t *testing.T) {
			url := engine.url(t)
			stores := []*store.DB{open(t, url), open(t, url)}
			ctx := t.Context()
			ada, err := stores[0].CreateUser(ctx, tidelock.User{Username: "ada"})
			if err != nil {
				t.Fatal(err)
			}
			site, err := stores[1].CreateProject(ctx, tidelock.Project{Namespace: ada.Namespace, Path: "site"})
			if err != nil {
				t.Fatal(err)
			}
			const each = 25
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					for n := range each {
						object := tidelock.CommitID(fmt.Sprintf("w%d-%d", i, n))
						_, err := stores[i%2].RecordPush(ctx, tidelock.Push{
							Project: site.ID, Updates: []tidelock.RefUpdate{{Ref: "refs/heads/main", New: object, Commit: object}},
						})
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			pushes, n, err := stores[0].Pushes(ctx, tidelock.PushFilter{Project: site.ID}, tidelock.Page{})
			if err != nil || n != 4*each {
				t.Fatalf("got %d pushes, %v, want %d", n, err, 4*each)
			}
			for i, p := range pushes[:n-1] {
				if got, want := p.Updates[0].Old, pushes[i+1].Updates[0].New; got != want {
					t.Fatalf("push %d moved from %s, want from %s", p.ID, got, want)
				}
			}
		})
	}
}

func TestOpenRefusesNewerSchema(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine.name, func(t *testing.T) {
			url := engine.url(t)
			if err := open(t, url).Close(); err != nil {
				t.Fatal(err)
			}
			driver, name := "pgx", url
			if engine.name == "sqlite" {
				driver, name = "sqlite", strings.TrimPrefix(url, "sqlite:")
			}
			db, err := sql.Open(driver, name)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, TRUE)`); err != nil {
				t.Fatal(err)
			}
			_, err = store.Open(t.Context(), store.Config{URL: url})
			if err == nil || !strings.Contains(err.Error(), "newer tidelock") || !strings.Contains(err.Error(), "9999") {
				t.Fatalf("got error %v, want one that names the newer schema", err)
			}
		})
	}
}

func TestOpenFailures(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("this is no database\n", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, url, want string }{
		{"nothing", "", "no database is named"},
		{"no path", "sqlite:", "no database is named"},
		{"a folder", dir, dir},
		{"a folder under a file", filepath.Join(garbage, "x.db"), "garbage.db"},
		{"another file", "sqlite:" + garbage, "garbage.db"},
		{"no server", "postgres://me:hunter2@127.0.0.1:1/x?connect_timeout=2", "connect to PostgreSQL"},
		{"a bad URL", "postgres://me:hunter2@127.0.0.1:port/x", "parse"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := store.Open(t.Context(), store.Config{URL: tt.url})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got error %v, want one that has %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("the error %v tells the password", err)
			}
		})
	}
}

func TestSQLiteFile(t *testing.T) {
	for _, prefix := range []string{"", "sqlite:"} {
		path := filepath.Join(t.TempDir(), "new", "a b?c#d%20.db")
		open(t, prefix+path)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := info.Mode().Perm(), fs.FileMode(0o600); got != want {
			t.Errorf("got mode %v, want %v", got, want)
		}
		for _, beside := range []string{path + "-wal", path + "-shm"} {
			if info, err := os.Stat(beside); errors.Is(err, fs.ErrNotExist) || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: got %v, %v, want mode 0600", beside, info, err)
			}
		}
	}
}
