package store_test

import (
	"log/slog"
	"path/filepath"
	"testing"

	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/seal"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/store/storetest"
)

var _ forge.Store = (*store.DB)(nil)

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) forge.Store {
		return open(t, "sqlite:"+filepath.Join(t.TempDir(), "tidelock.db"))
	})
}

func TestPostgres(t *testing.T) {
	url := storetest.Postgres(t)
	db := open(t, url)
	storetest.Run(t, func(t *testing.T) forge.Store {
		storetest.EmptyPostgres(t, url)
		return db
	})
}

func open(t testing.TB, url string) *store.DB {
	t.Helper()
	box, err := seal.New(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{URL: url, Seal: box, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}
