package store

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"tidelock.dev"
)

// A Dump says what a copy of a database holds. The rows are beside it, a text
// per table, in a form that is the same for both engines.
type Dump struct {
	Schema int64       `json:"schema"` // the version
	Tables []DumpTable `json:"tables"`
}

// A DumpTable is one table of a dump. Each line of its text is a row, a JSON
// array of its columns: numbers, texts, null, and {"blob": base64}.
type DumpTable struct {
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
	Rows    int64    `json:"rows"`
	// LastID is the largest id ever given to a row, also to one that is gone;
	// 0 where the database gives none.
	LastID int64 `json:"last_id,omitempty"`
}

// WriteDump copies everything that the database at a URL holds, as it was at
// one moment, while servers go on using it. It writes each table to what
// create returns and closes that. It changes nothing, not even the schema.
func WriteDump(ctx context.Context, url string, create func(table string) (io.WriteCloser, error)) (_ Dump, err error) {
	at, err := openAsIs(ctx, url)
	if err != nil {
		return Dump{}, fmt.Errorf("open the database: %w", err)
	}
	defer func() { err = errors.Join(err, at.close()) }()
	tx, err := at.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return Dump{}, fmt.Errorf("read the database: %w", err)
	}
	defer tx.Rollback()

	version, err := at.version(ctx, tx)
	if err != nil {
		return Dump{}, err
	}
	newest, err := newestSchema()
	switch {
	case err != nil:
		return Dump{}, err
	case version == 0:
		return Dump{}, tidelock.Errorf(tidelock.NotFound, "the database holds no data of Tidelock")
	case version > newest:
		return Dump{}, tidelock.Errorf(tidelock.Conflict, "the database has schema version %d and this program knows up to %d; use the program of the server", version, newest)
	}
	tables, err := at.tables(ctx, tx)
	if err != nil {
		return Dump{}, fmt.Errorf("list the tables: %w", err)
	}
	dump := Dump{Schema: version, Tables: []DumpTable{}}
	for _, t := range tables {
		d := DumpTable{Name: t.name, Columns: t.columnNames()}
		if d.Rows, err = t.write(ctx, tx, create); err != nil {
			return Dump{}, fmt.Errorf("read table %s: %w", t.name, err)
		}
		if d.LastID, err = at.lastID(ctx, tx, t); err != nil {
			return Dump{}, fmt.Errorf("read the last id of table %s: %w", t.name, err)
		}
		dump.Tables = append(dump.Tables, d)
	}
	return dump, nil
}

// write copies all rows of a table and counts them.
func (t table) write(ctx context.Context, tx *sql.Tx, create func(string) (io.WriteCloser, error)) (n int64, err error) {
	to, err := create(t.name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	rows, err := tx.QueryContext(ctx, "SELECT "+t.list()+" FROM "+quoted(t.name))
	if err != nil {
		return 0, err
	}
	defer rows.Close()

	out := bufio.NewWriterSize(to, 64<<10)
	values := make([]any, len(t.columns))
	into := make([]any, len(values))
	for i := range values {
		into[i] = &values[i]
	}
	var line []byte
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return n, err
		}
		line = append(line[:0], '[')
		for i, v := range values {
			if i > 0 {
				line = append(line, ',')
			}
			if line, err = appendValue(line, v); err != nil {
				return n, fmt.Errorf("column %s: %w", t.columns[i].name, err)
			}
		}
		line = append(line, ']', '\n')
		if _, err := out.Write(line); err != nil {
			return n, err
		}
		n++
	}
	return n, errors.Join(rows.Err(), out.Flush())
}

// appendValue writes what a driver read.
func appendValue(line []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(line, "null"...), nil
	case int64:
		return strconv.AppendInt(line, v, 10), nil
	case bool: // SQLite has only numbers
		if v {
			return append(line, '1'), nil
		}
		return append(line, '0'), nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v cannot be kept", v)
		}
		return strconv.AppendFloat(line, v, 'g', -1, 64), nil
	case string:
		if !utf8.ValidString(v) {
			return nil, errors.New("the text is not UTF-8")
		}
		text, err := json.Marshal(v)
		return append(line, text...), err
	case []byte:
		line = append(line, `{"blob":"`...)
		line = base64.StdEncoding.AppendEncode(line, v)
		return append(line, `"}`...), nil
	}
	return nil, fmt.Errorf("a %T cannot be kept", v)
}

// maxRow bounds a row in its text.
const maxRow = 256 << 20

// eachRow reads the text of a table.
func (d DumpTable) eachRow(text io.Reader, fn func(row []any) error) error {
	lines := bufio.NewScanner(text)
	lines.Buffer(make([]byte, 64<<10), maxRow)
	var n int64
	for lines.Scan() {
		n++
		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		decoder.UseNumber()
		var row []any
		if err := decoder.Decode(&row); err != nil {
			return fmt.Errorf("row %d of table %q cannot be read: %w", n, d.Name, err)
		}
		if len(row) != len(d.Columns) || decoder.More() {
			return fmt.Errorf("row %d of table %q does not have %d columns", n, d.Name, len(d.Columns))
		}
		if err := fn(row); err != nil {
			return fmt.Errorf("row %d of table %q: %w", n, d.Name, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read table %q: %w", d.Name, err)
	}
	if n != d.Rows {
		return fmt.Errorf("table %q has %d rows, not %d", d.Name, n, d.Rows)
	}
	return nil
}

// Check reads the text of a table to its end and finds what could not be
// loaded, as far as that can be told without the database.
func (d DumpTable) Check(text io.Reader) error {
	return d.eachRow(text, func(row []any) error {
		for i, v := range row {
			switch v := v.(type) {
			case nil, string, json.Number:
			case map[string]any:
				if _, err := blob(v); err != nil {
					return fmt.Errorf("column %q: %w", d.Columns[i], err)
				}
			default:
				return fmt.Errorf("column %q cannot hold a %T", d.Columns[i], v)
			}
		}
		return nil
	})
}

// IDs reads the ids of a table's rows.
func (d DumpTable) IDs(text io.Reader) ([]int64, error) {
	at := slices.Index(d.Columns, "id")
	if at < 0 {
		return nil, fmt.Errorf("table %q has no ids", d.Name)
	}
	ids := make([]int64, 0, d.Rows)
	err := d.eachRow(text, func(row []any) error {
		number, _ := row[at].(json.Number)
		id, err := strconv.ParseInt(string(number), 10, 64)
		ids = append(ids, id)
		return err
	})
	return ids, err
}

func blob(v any) ([]byte, error) {
	object, _ := v.(map[string]any)
	text, ok := object["blob"].(string)
	if !ok || len(object) != 1 {
		return nil, errors.New("these are no bytes")
	}
	return base64.StdEncoding.DecodeString(text)
}

// Validate finds out whether this program can load a dump.
func (d Dump) Validate() error {
	newest, err := newestSchema()
	if err != nil {
		return err
	}
	if d.Schema < 1 || d.Schema > newest {
		return tidelock.Errorf(tidelock.Conflict, "the backup has schema version %d and this program knows up to %d; use the tidelock that made it, or a newer one", d.Schema, newest)
	}
	names := map[string]bool{}
	for _, t := range d.Tables {
		if names[t.Name] || !isName(t.Name) || len(t.Columns) == 0 || t.Rows < 0 || t.LastID < 0 {
			return fmt.Errorf("the description of table %q makes no sense", t.Name)
		}
		names[t.Name] = true
	}
	return nil
}

// isName reports whether a table may be called so; names also name files.
func isName(s string) bool {
	return s != "" && len(s) <= 63 && !strings.ContainsFunc(s, func(c rune) bool {
		return c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9')
	})
}

// newestSchema is the version of the schema that this program has.
func newestSchema() (int64, error) {
	files, err := fs.Glob(migrations, "sqlite/*.sql")
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("list migrations: %w", err)
	}
	number, _, _ := strings.Cut(path.Base(slices.Max(files)), "_")
	return strconv.ParseInt(number, 10, 64)
}

// A table is one in a database.
type table struct {
	name    string
	columns []column
}

type column struct{ name, kind string } // kind is the engine's word

func (t table) columnNames() []string {
	names := make([]string, len(t.columns))
	for i, c := range t.columns {
		names[i] = c.name
	}
	return names
}

func (t table) list() string {
	names := t.columnNames()
	for i, name := range names {
		names[i] = quoted(name)
	}
	return strings.Join(names, ", ")
}

func (t table) has(column string) bool { return slices.Contains(t.columnNames(), column) }

func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// asIs is a database whose schema is looked at, not assumed.
type asIs struct {
	db     *sql.DB
	engine catalog
	close  func() error
}

// openAsIs opens a database that exists, and leaves its schema alone.
func openAsIs(ctx context.Context, url string) (*asIs, error) {
	if isPostgres(url) {
		db, err := openPostgres(ctx, url)
		if err != nil {
			return nil, err
		}
		return &asIs{db.writes.DB, postgresCatalog, db.Close}, nil
	}
	name := strings.TrimPrefix(url, "sqlite:")
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return nil, tidelock.Errorf(tidelock.NotFound, "there is no database %s", name)
	} else if err != nil {
		return nil, err
	}
	pool, err := openReadOnly(name)
	if err != nil {
		return nil, err
	}
	return &asIs{pool.DB, sqliteCatalog, pool.close}, nil
}

func isPostgres(url string) bool {
	return strings.HasPrefix(url, "postgres://") || strings.HasPrefix(url, "postgresql://")
}

// A catalog is how an engine describes its schema.
type catalog struct {
	allTables  string // names, but those of the engine itself
	allColumns string // of one table, in order: name, type
	lastID     func(context.Context, *sql.Tx, table) (int64, error)
	setLastID  func(context.Context, *sql.Tx, table, int64) error
}

const schemaTable = "goose_db_version"

var sqliteCatalog = catalog{
	allTables:  `SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_' ORDER BY name`,
	allColumns: `SELECT name, type FROM pragma_table_info(?) ORDER BY cid`,
	lastID: func(ctx context.Context, tx *sql.Tx, t table) (int64, error) {
		var id int64
		err := tx.QueryRowContext(ctx, `SELECT seq FROM sqlite_sequence WHERE name = ?`, t.name).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return 0, nil
		}
		return id, err
	},
	setLastID: setSQLiteID,
}

var postgresCatalog = catalog{
	allTables: `SELECT table_name::TEXT FROM information_schema.tables
		WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' ORDER BY table_name`,
	allColumns: `SELECT column_name::TEXT, data_type::TEXT FROM information_schema.columns
		WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position`,
	lastID: func(ctx context.Context, tx *sql.Tx, t table) (int64, error) {
		sequence, err := postgresSequence(ctx, tx, t)
		if err != nil || sequence == "" {
			return 0, err
		}
		var id int64
		var used bool
		// The name came quoted from PostgreSQL. A sequence is not part of any
		// snapshot: it may be ahead of the rows, which is on the safe side.
		err = tx.QueryRowContext(ctx, `SELECT last_value, is_called FROM `+sequence).Scan(&id, &used)
		if err != nil || !used {
			return 0, err
		}
		return id, nil
	},
	setLastID: setPostgresID,
}

// postgresSequence is what numbers the rows of a table, "" for none.
func postgresSequence(ctx context.Context, tx *sql.Tx, t table) (string, error) {
	if !t.has("id") {
		return "", nil
	}
	var name sql.NullString
	err := tx.QueryRowContext(ctx, `SELECT pg_get_serial_sequence($1, 'id')`, quoted(t.name)).Scan(&name)
	return name.String, err
}

func (a *asIs) lastID(ctx context.Context, tx *sql.Tx, t table) (int64, error) {
	return a.engine.lastID(ctx, tx, t)
}

// tables lists ours, by name.
func (a *asIs) tables(ctx context.Context, tx *sql.Tx) ([]table, error) {
	names, err := column1(ctx, tx, a.engine.allTables)
	if err != nil {
		return nil, err
	}
	tables := []table{}
	for _, name := range names {
		if name == schemaTable {
			continue
		}
		t := table{name: name}
		rows, err := tx.QueryContext(ctx, a.engine.allColumns, name)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var c column
			if err := rows.Scan(&c.name, &c.kind); err != nil {
				rows.Close()
				return nil, err
			}
			t.columns = append(t.columns, c)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, err
		}
		tables = append(tables, t)
	}
	return tables, nil
}

func column1(ctx context.Context, tx *sql.Tx, text string) ([]string, error) {
	rows, err := tx.QueryContext(ctx, text)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}

// version is that of the schema, 0 when there is none.
func (a *asIs) version(ctx context.Context, tx *sql.Tx) (int64, error) {
	names, err := column1(ctx, tx, a.engine.allTables)
	if err != nil {
		return 0, fmt.Errorf("list the tables: %w", err)
	}
	if !slices.Contains(names, schemaTable) {
		return 0, nil
	}
	var version int64
	err = tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(version_id), 0) FROM `+schemaTable+` WHERE is_applied`).Scan(&version)
	if err != nil {
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	return version, nil
}

// byName finds tables.
func byName(tables []table) map[string]table {
	return maps.Collect(func(yield func(string, table) bool) {
		for _, t := range tables {
			if !yield(t.name, t) {
				return
			}
		}
	})
}
