// Package store remembers everything that is not in a Git repository or the
// registry: people, namespaces, projects, tokens, heads, pushes, agents and
// what they were told. It is SQL on SQLite, a file in the data directory, or
// on PostgreSQL, and the only place where SQL is written.
//
// It owns the schema and the promises that need a transaction: unique paths
// and names, heads whose history has no gaps, at most two tokens per agent.
// It does not own the rules: who may do what is decided by package forge,
// whose interface Store says what each method here does.
//
//	db, err := store.Open(ctx, store.Config{URL: "sqlite:/var/lib/tidelock/tidelock.db"})
//	defer db.Close()
//	push, err := db.RecordPush(ctx, push)
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"tidelock.dev/internal/seal"
)

// A Config says where the data is.
type Config struct {
	// URL is "sqlite:" and the path of a file, or the path alone, or a
	// postgres:// URL. Required.
	URL string
	// Seal hides what is secret and must be read again. Without it such things
	// can be neither written nor read.
	Seal *seal.Box
	Log  *slog.Logger // default: discard
}

// A DB is a store in one database. Its methods may be called concurrently,
// and several DBs, also of several processes, may use one database.
type DB struct {
	dialect
	box *seal.Box // may be nil
	// reads serves queries, writes serves transactions that survive a power
	// failure, and notes serves those that need not: facts that are found
	// again, such as when a token was last used.
	reads, writes, notes *pool
	// turn holds a token while this DB writes, so that its two writing
	// connections never meet in SQLite, which makes the loser sleep. Nil for
	// PostgreSQL.
	turn chan struct{}
}

// Open opens the database, makes it if it is a file that does not exist, and
// brings its schema up to date. It refuses a schema that is newer than the
// program.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("component", "store")

	open, target := openSQLite, strings.TrimPrefix(cfg.URL, "sqlite:")
	if strings.HasPrefix(cfg.URL, "postgres://") || strings.HasPrefix(cfg.URL, "postgresql://") {
		open, target = openPostgres, cfg.URL
	}
	if target == "" {
		return nil, errors.New("open store: no database is named; give a path or a postgres:// URL")
	}
	db, err := open(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	db.box = cfg.Seal
	if err := db.migrate(ctx, log); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), db.Close())
	}
	return db, nil
}

// Close waits for transactions in flight and closes all connections.
func (db *DB) Close() error {
	var err error
	for _, p := range []*pool{db.reads, db.notes, db.writes} {
		err = errors.Join(err, p.close())
	}
	return err
}

const ping = `SELECT COUNT(*) FROM (SELECT 1 FROM users LIMIT 1) AS any_user`

// Ping reports whether the store can be read.
func (db *DB) Ping(ctx context.Context) error {
	var n int
	if err := db.point(ctx).row(ctx, ping).Scan(&n); err != nil {
		return fmt.Errorf("ping store: %w", err)
	}
	return nil
}

// A dialect is what differs between the engines.
type dialect struct {
	// rebind turns ? placeholders into the engine's own.
	rebind func(string) string
	// in is the right side of "column IN (...)" for one argument made by
	// idList.
	in string
	// lockRow, appended to a query, keeps its row from changing until the
	// transaction ends, where a write transaction does not do so by itself.
	lockRow string
	// lockRoutes lets one transaction at a time change the tree of
	// namespaces and projects; empty where that is always so.
	lockRoutes string
	// contended reports that a transaction failed only because of another
	// one. It is tried this many times.
	contended func(error) bool
	attempts  int
	// missingReference reports that a row names another that does not exist.
	missingReference func(error) bool

	migrate func(ctx context.Context, log *slog.Logger) error
}
