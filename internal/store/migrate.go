package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/pressly/goose/v3"
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed sqlite/*.sql postgres/*.sql
var migrations embed.FS

// migrateSQLite needs no lock: each migration is one immediate transaction
// that also writes its version, so of two servers that start at once the
// second fails on the first statement, and looks again.
func migrateSQLite(ctx context.Context, db *sql.DB, log *slog.Logger) error {
	for {
		p, err := migrator(goose.DialectSQLite3, db, "sqlite")
		if err != nil {
			return err
		}
		before, err := version(ctx, p)
		if err != nil {
			return err
		}
		failed := apply(ctx, p, log)
		if failed == nil {
			return nil
		}
		after, err := version(ctx, p)
		if err != nil {
			return errors.Join(failed, err)
		}
		busy := sqliteCode(failed)&0xff == sqlite3.SQLITE_BUSY
		if after == before && !busy || ctx.Err() != nil {
			return failed
		}
	}
}

func migratePostgres(ctx context.Context, db *sql.DB, log *slog.Logger) error {
	p, err := migrator(goose.DialectPostgres, db, "postgres", goose.WithSessionLocker(advisoryLock{}))
	if err != nil {
		return err
	}
	if _, err := version(ctx, p); err != nil {
		return err
	}
	return apply(ctx, p, log)
}

// migrator gives goose each file as a function: the parser of goose, which is
// for statements with semicolons inside, takes 4 MB of memory for every line.
func migrator(d goose.Dialect, db *sql.DB, folder string, options ...goose.ProviderOption) (*goose.Provider, error) {
	files, err := fs.Glob(migrations, folder+"/*.sql")
	if err != nil {
		return nil, fmt.Errorf("open migrations: %w", err)
	}
	all := make([]*goose.Migration, len(files))
	for i, file := range files {
		version, err := goose.NumericComponent(file)
		if err != nil {
			return nil, fmt.Errorf("open migrations: %w", err)
		}
		text, err := migrations.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("open migrations: %w", err)
		}
		all[i] = goose.NewGoMigration(version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, string(text))
			return err
		}}, nil)
	}
	options = append(options, goose.WithGoMigrations(all...), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	p, err := goose.NewProvider(d, db, nil, options...)
	if err != nil {
		return nil, fmt.Errorf("open migrations: %w", err)
	}
	return p, nil
}

// version returns the version of the schema, and refuses one from the future.
func version(ctx context.Context, p *goose.Provider) (int64, error) {
	current, err := p.GetDBVersion(ctx)
	if err != nil {
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	sources := p.ListSources()
	if newest := sources[len(sources)-1].Version; current > newest {
		return 0, fmt.Errorf("the database was made by a newer tidelock: its schema is version %d and this program knows up to %d; start the newer one, or restore a backup from before it", current, newest)
	}
	return current, nil
}

func apply(ctx context.Context, p *goose.Provider, log *slog.Logger) error {
	results, err := p.Up(ctx)
	for _, r := range results {
		log.InfoContext(ctx, "schema migrated", "version", r.Source.Version, "took", r.Duration.Round(time.Millisecond))
	}
	if err != nil {
		return fmt.Errorf("migrate schema: %w", err)
	}
	return nil
}

// An advisoryLock lets one server at a time migrate a PostgreSQL database.
// PostgreSQL frees it when the connection ends, however it ends.
type advisoryLock struct{}

// migrationLock is an arbitrary number, the same in every release.
const migrationLock = 7_409_433_261

func (advisoryLock) SessionLock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, migrationLock)
	return err
}

func (advisoryLock) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, `SELECT pg_advisory_unlock($1)`, migrationLock)
	return err
}
