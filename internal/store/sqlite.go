package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// busyTimeout is how long a statement waits for another process.
const busyTimeout = 10 * time.Second

func openSQLite(ctx context.Context, path string) (*DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of database: %w", err)
	}
	// The files that SQLite puts beside it get the same rights.
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := file.Close(); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}

	writing := func(synchronous string) (*pool, error) {
		return openFile(path, 1, url.Values{
			"_txlock": {"immediate"},
			"_pragma": {"journal_mode(WAL)", "synchronous(" + synchronous + ")", "foreign_keys(1)", "journal_size_limit(67108864)"},
		})
	}
	db := &DB{
		dialect: dialect{
			rebind:           func(text string) string { return text },
			in:               "SELECT value FROM json_each(?)",
			contended:        func(err error) bool { return sqliteCode(err)&0xff == sqlite3.SQLITE_BUSY },
			attempts:         1, // it has waited for its turn
			missingReference: func(err error) bool { return sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY },
		},
		turn: make(chan struct{}, 1),
	}
	if db.writes, err = writing("FULL"); err != nil {
		return nil, err
	}
	if db.notes, err = writing("NORMAL"); err != nil {
		return nil, err
	}
	if db.reads, err = openFile(path, max(4, runtime.NumCPU()), url.Values{"_query_only": {"1"}}); err != nil {
		return nil, err
	}
	db.dialect.migrate = func(ctx context.Context, log *slog.Logger) error {
		return migrateSQLite(ctx, db.writes.DB, log)
	}
	if err := connect(ctx, db.writes.DB); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %q: %w", path, err), db.Close())
	}
	return db, nil
}

func openFile(path string, connections int, options url.Values) (*pool, error) {
	options.Set("_busy_timeout", fmt.Sprint(busyTimeout.Milliseconds()))
	options.Set("_dqs", "0")
	name := url.URL{Scheme: "file", Path: path, RawQuery: options.Encode()}
	connector, err := sqlite.NewConnector(name.String())
	if err != nil {
		return nil, fmt.Errorf("open database %q: %w", path, err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return &pool{DB: db, prepare: true}, nil
}

// openReadOnly opens a file that exists to read it, also beside a server.
func openReadOnly(path string) (*pool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	return openFile(path, 1, url.Values{"mode": {"rw"}, "_query_only": {"1"}})
}

// connect makes the first connection, which turns a new file to WAL. SQLite
// does not wait its busy timeout there when several do so at once.
func connect(ctx context.Context, db *sql.DB) error {
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	for {
		err := db.PingContext(ctx)
		if err == nil || sqliteCode(err)&0xff != sqlite3.SQLITE_BUSY {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// sqliteCode returns SQLite's extended result code, 0 if err has none.
func sqliteCode(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}
