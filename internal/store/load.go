package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/pressly/goose/v3"

	"tidelock.dev"
)

// Vacant reports, as an error of kind Conflict, that a dump cannot be loaded
// into the database at a URL because it holds something. It changes nothing.
func (d Dump) Vacant(ctx context.Context, url string) (err error) {
	if !isPostgres(url) {
		name := strings.TrimPrefix(url, "sqlite:")
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("look at the database: %w", err)
		case info.Size() > 0:
			return tidelock.Errorf(tidelock.Conflict, "there is a database already: %s", name)
		}
		return nil
	}
	at, err := openAsIs(ctx, url)
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	defer func() { err = errors.Join(err, at.close()) }()
	tx, err := at.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("look at the database: %w", err)
	}
	defer tx.Rollback()
	return d.vacant(ctx, at, tx)
}

func (d Dump) vacant(ctx context.Context, at *asIs, tx *sql.Tx) error {
	version, err := at.version(ctx, tx)
	if err != nil {
		return err
	}
	if version > d.Schema {
		return tidelock.Errorf(tidelock.Conflict, "the database has schema version %d already and the backup has %d; restore into a new database", version, d.Schema)
	}
	tables, err := at.tables(ctx, tx)
	if err != nil {
		return fmt.Errorf("list the tables: %w", err)
	}
	for _, t := range tables {
		var full bool
		if err := tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM "+quoted(t.name)+")").Scan(&full); err != nil {
			return fmt.Errorf("look into table %s: %w", t.name, err)
		}
		if full {
			return tidelock.Errorf(tidelock.Conflict, "the database is not empty: table %q holds data; restore into an empty one", t.name)
		}
	}
	return nil
}

// Load fills the database at a URL, which must be vacant, with a dump; open
// returns the text of a table. All rows come in one transaction, whose last
// step is ready: on any error the database holds no rows.
func (d Dump) Load(ctx context.Context, url string, open func(table string) (io.ReadCloser, error), ready func() error) (err error) {
	if err := d.Validate(); err != nil {
		return err
	}
	db, at, err := d.prepare(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.transact(ctx, db.writes, nil, func(s session) error {
		if err := d.vacant(ctx, at, s.tx); err != nil {
			return err
		}
		resume, err := postponeChecks(ctx, url, s.tx)
		if err != nil {
			return fmt.Errorf("postpone the checks of references: %w", err)
		}
		if err := d.fill(ctx, at, s, open); err != nil {
			return err
		}
		if err := resume(); err != nil {
			return fmt.Errorf("check the references of the backup: %w", err)
		}
		if ready != nil {
			return ready()
		}
		return nil
	})
}

// prepare opens the database and gives it the schema that the dump has; the
// next server brings it up to date.
func (d Dump) prepare(ctx context.Context, url string) (*DB, *asIs, error) {
	open, engine, folder, dialect := openSQLite, sqliteCatalog, "sqlite", goose.DialectSQLite3
	target := strings.TrimPrefix(url, "sqlite:")
	if isPostgres(url) {
		open, engine, folder, dialect, target = openPostgres, postgresCatalog, "postgres", goose.DialectPostgres, url
	}
	db, err := open(ctx, target)
	if err != nil {
		return nil, nil, fmt.Errorf("open the database: %w", err)
	}
	provider, err := migrator(dialect, db.writes.DB, folder)
	if err == nil {
		_, err = provider.UpTo(ctx, d.Schema)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make the schema: %w", err), db.Close())
	}
	return db, &asIs{db: db.writes.DB, engine: engine}, nil
}

func (d Dump) fill(ctx context.Context, at *asIs, s session, open func(string) (io.ReadCloser, error)) error {
	tables, err := at.tables(ctx, s.tx)
	if err != nil {
		return fmt.Errorf("list the tables: %w", err)
	}
	known := byName(tables)
	for _, from := range d.Tables {
		to, ok := known[from.Name]
		delete(known, from.Name)
		if !ok || !slices.Equal(slices.Sorted(slices.Values(from.Columns)), slices.Sorted(slices.Values(to.columnNames()))) {
			return tidelock.Errorf(tidelock.Conflict, "table %q of the backup is not as schema version %d has it", from.Name, d.Schema)
		}
		if err := fillTable(ctx, s, from, to, open); err != nil {
			return err
		}
		if err := setLastID(ctx, at, s, from, to); err != nil {
			return fmt.Errorf("set the last id of table %s: %w", from.Name, err)
		}
	}
	for name := range known {
		return tidelock.Errorf(tidelock.Conflict, "the backup has no table %q, which schema version %d has", name, d.Schema)
	}
	return nil
}

// rowsAtOnce and mostArgs bound one INSERT; SQLite takes 32,766 arguments.
const (
	rowsAtOnce = 100
	mostArgs   = 30_000
)

func fillTable(ctx context.Context, s session, from DumpTable, to table, open func(string) (io.ReadCloser, error)) error {
	text, err := open(from.Name)
	if err != nil {
		return err
	}
	defer text.Close()
	kinds := make([]string, len(from.Columns))
	names := make([]string, len(from.Columns))
	for i, name := range from.Columns {
		names[i] = quoted(name)
		for _, c := range to.columns {
			if c.name == name {
				kinds[i] = c.kind
			}
		}
	}
	insert := "INSERT INTO " + quoted(from.Name) + " (" + strings.Join(names, ", ") + ") VALUES "
	row := "(" + strings.TrimSuffix(strings.Repeat("?, ", len(names)), ", ") + ")"
	most := max(1, min(rowsAtOnce, mostArgs/len(names)))
	full, err := s.tx.PrepareContext(ctx, s.rebind(insert+strings.TrimSuffix(strings.Repeat(row+", ", most), ", ")))
	if err != nil {
		return fmt.Errorf("write table %s: %w", from.Name, err)
	}
	defer full.Close()

	args := make([]any, 0, most*len(names))
	err = from.eachRow(text, func(values []any) error {
		for i, v := range values {
			arg, err := argument(v, kinds[i])
			if err != nil {
				return fmt.Errorf("column %q: %w", from.Columns[i], err)
			}
			args = append(args, arg)
		}
		if len(args) < most*len(names) {
			return nil
		}
		_, err := full.ExecContext(ctx, args...)
		args = args[:0]
		return err
	})
	if err != nil {
		return err
	}
	if rest := len(args) / len(names); rest > 0 {
		_, err = s.tx.ExecContext(ctx, s.rebind(insert+strings.TrimSuffix(strings.Repeat(row+", ", rest), ", ")), args...)
	}
	if err != nil {
		return fmt.Errorf("write table %s: %w", from.Name, err)
	}
	return nil
}

// argument turns a value of a dump into what a column of a kind takes.
func argument(v any, kind string) (any, error) {
	if v == nil {
		return nil, nil
	}
	number, isNumber := v.(json.Number)
	text, isText := v.(string)
	switch kind := strings.ToLower(kind); {
	case kind == "boolean" && isNumber && (number == "0" || number == "1"):
		return number == "1", nil
	case (kind == "integer" || kind == "bigint" || kind == "smallint") && isNumber:
		return strconv.ParseInt(string(number), 10, 64)
	case (kind == "real" || kind == "double precision") && isNumber:
		return strconv.ParseFloat(string(number), 64)
	case kind == "text" && isText:
		return text, nil
	case kind == "blob" || kind == "bytea":
		return blob(v)
	}
	return nil, fmt.Errorf("a column of type %s cannot hold %.40v", kind, v)
}

// setLastID keeps ids from being given out again.
func setLastID(ctx context.Context, at *asIs, s session, from DumpTable, to table) error {
	last := from.LastID
	if last == 0 {
		return nil
	}
	if !to.has("id") {
		return errors.New("it has no ids")
	}
	var largest int64
	if err := s.tx.QueryRowContext(ctx, "SELECT COALESCE(MAX(id), 0) FROM "+quoted(to.name)).Scan(&largest); err != nil {
		return err
	}
	return at.engine.setLastID(ctx, s.tx, to, max(last, largest))
}

func setSQLiteID(ctx context.Context, tx *sql.Tx, t table, id int64) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM sqlite_sequence WHERE name = ?`, t.name); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)`, t.name, id)
	return err
}

func setPostgresID(ctx context.Context, tx *sql.Tx, t table, id int64) error {
	sequence, err := postgresSequence(ctx, tx, t)
	if err != nil {
		return err
	}
	if sequence == "" {
		return errors.New("nothing numbers its rows")
	}
	_, err = tx.ExecContext(ctx, `SELECT setval($1::REGCLASS, $2)`, sequence, id)
	return err
}

const foreignKeys = `SELECT format('ALTER TABLE %s ALTER CONSTRAINT %I ', conrelid::REGCLASS, conname)
	FROM pg_constraint WHERE contype = 'f' AND connamespace = current_schema()::REGNAMESPACE ORDER BY 1`

// postponeChecks lets rows come before those that they refer to, until resume
// is called.
func postponeChecks(ctx context.Context, url string, tx *sql.Tx) (resume func() error, err error) {
	if !isPostgres(url) {
		if _, err := tx.ExecContext(ctx, `PRAGMA defer_foreign_keys = 1`); err != nil {
			return nil, err
		}
		return func() error {
			broken, err := column1(ctx, tx, `SELECT "table" || ' → ' || parent FROM pragma_foreign_key_check LIMIT 1`)
			if err == nil && len(broken) > 0 {
				err = fmt.Errorf("a row refers to one that is missing: %s", broken[0])
			}
			return err
		}, nil
	}
	constraints, err := column1(ctx, tx, foreignKeys)
	if err != nil {
		return nil, err
	}
	alter := func(how string) error {
		for _, c := range constraints {
			if _, err := tx.ExecContext(ctx, c+how); err != nil {
				return err
			}
		}
		return nil
	}
	if err := alter("DEFERRABLE INITIALLY DEFERRED"); err != nil {
		return nil, err
	}
	return func() error {
		if _, err := tx.ExecContext(ctx, `SET CONSTRAINTS ALL IMMEDIATE`); err != nil {
			return err
		}
		return alter("NOT DEFERRABLE")
	}, nil
}
