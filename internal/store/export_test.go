package store

import (
	"context"
	"errors"
	"strings"

	"github.com/pressly/goose/v3"
)

// MakeAt makes a database whose schema has a version, and runs statements in
// it, as the program of that version has left it.
func MakeAt(ctx context.Context, url string, version int64, statements string) (err error) {
	open, d, folder, target := openSQLite, goose.DialectSQLite3, "sqlite", strings.TrimPrefix(url, "sqlite:")
	if strings.HasPrefix(url, "postgres://") {
		open, d, folder, target = openPostgres, goose.DialectPostgres, "postgres", url
	}
	db, err := open(ctx, target)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	p, err := migrator(d, db.writes.DB, folder)
	if err != nil {
		return err
	}
	if _, err := p.UpTo(ctx, version); err != nil {
		return err
	}
	for statement := range strings.SplitSeq(statements, ";") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := db.writes.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}
