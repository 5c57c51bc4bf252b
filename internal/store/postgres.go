package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// How many connections one server keeps to PostgreSQL, whose own default
// limit is 100 for all.
const (
	postgresConnections     = 16
	postgresNoteConnections = 4
)

func openPostgres(ctx context.Context, target string) (*DB, error) {
	cfg, err := pgx.ParseConfig(target)
	if err != nil {
		return nil, err // names the problem, with the password left out
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "tidelock"
	}
	main := &pool{DB: openPool(*cfg, postgresConnections)}
	lazy := cfg.Copy()
	lazy.RuntimeParams["synchronous_commit"] = "off"

	db := &DB{
		dialect: dialect{
			rebind:           dollars,
			in:               "SELECT ids.id::BIGINT FROM jsonb_array_elements_text(?::JSONB) AS ids (id)",
			lockRow:          " FOR NO KEY UPDATE",
			lockRoutes:       "LOCK TABLE routes IN SHARE ROW EXCLUSIVE MODE",
			contended:        func(err error) bool { c := postgresCode(err); return c == "40001" || c == "40P01" },
			attempts:         5,
			missingReference: func(err error) bool { return postgresCode(err) == "23503" },
		},
		reads:  main,
		writes: main,
		notes:  &pool{DB: openPool(*lazy, postgresNoteConnections)},
	}
	db.dialect.migrate = func(ctx context.Context, log *slog.Logger) error {
		return migratePostgres(ctx, main.DB, log)
	}
	if err := main.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to PostgreSQL: %w", err), db.Close())
	}
	return db, nil
}

func openPool(cfg pgx.ConnConfig, connections int) *sql.DB {
	db := stdlib.OpenDB(cfg)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return db
}

// dollars turns each ? into $1, $2 and so on. No text of ours has a ? in a
// literal.
func dollars(text string) string {
	var b strings.Builder
	b.Grow(len(text) + 16)
	for n := 1; ; n++ {
		before, after, found := strings.Cut(text, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
		text = after
	}
}

// postgresCode returns PostgreSQL's SQLSTATE, "" if err has none.
func postgresCode(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}
