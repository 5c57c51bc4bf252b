package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"time"

	"tidelock.dev"
)

// A pool is a set of connections of one purpose. If prepare is set, it keeps
// statements prepared from their second use on; pgx does so by itself.
type pool struct {
	*sql.DB
	prepare bool

	mu       sync.Mutex
	prepared map[string]*sql.Stmt
	wanted   map[string]bool // used once, not prepared yet
}

// statement returns the prepared form of a text, or nil if it has none yet.
func (p *pool) statement(text string) *sql.Stmt {
	if !p.prepare {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.prepared[text]; s != nil {
		return s
	}
	if p.wanted == nil {
		p.wanted = map[string]bool{}
	}
	p.wanted[text] = true
	return nil
}

// prepareWanted prepares what was used once. It is called before a
// transaction, because preparing takes a connection of its own.
func (p *pool) prepareWanted(ctx context.Context) {
	p.mu.Lock()
	wanted := p.wanted
	p.wanted = nil
	p.mu.Unlock()
	for text := range wanted {
		s, err := p.PrepareContext(ctx, text)
		if err != nil {
			return // whatever is wrong, running the text will tell
		}
		p.mu.Lock()
		if p.prepared == nil {
			p.prepared = map[string]*sql.Stmt{}
		}
		if p.prepared[text] == nil {
			p.prepared[text], s = s, nil
		}
		p.mu.Unlock()
		if s != nil {
			s.Close()
		}
	}
}

func (p *pool) close() error {
	p.mu.Lock()
	for _, s := range p.prepared {
		s.Close()
	}
	p.mu.Unlock()
	return p.Close()
}

// A session runs statements, on a pool or inside a transaction.
type session struct {
	*dialect
	pool *pool
	tx   *sql.Tx // nil outside a transaction
	rare bool    // its texts have too many forms to be prepared
}

// rarely returns a session for texts that are put together as needed.
func (s session) rarely() session {
	s.rare = true
	return s
}

// prepared returns the prepared form of a text, or nil.
func (s session) prepared(ctx context.Context, text string) *sql.Stmt {
	if s.rare {
		return nil
	}
	stmt := s.pool.statement(text)
	if stmt != nil && s.tx != nil {
		return s.tx.StmtContext(ctx, stmt)
	}
	return stmt
}

// point returns a session for a query that stands alone.
func (db *DB) point(ctx context.Context) session {
	db.reads.prepareWanted(ctx)
	return session{dialect: &db.dialect, pool: db.reads}
}

// read runs queries that must agree with each other.
func (db *DB) read(ctx context.Context, fn func(session) error) error {
	return db.transact(ctx, db.reads, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}, fn)
}

// write runs a transaction that, once it returns nil, survives a power
// failure. fn may run more than once and must not keep anything between.
func (db *DB) write(ctx context.Context, fn func(session) error) error {
	return db.inTurn(ctx, db.writes, fn)
}

// note is write for facts that the caller finds again should a power failure
// undo them; it does not wait for the disk.
func (db *DB) note(ctx context.Context, fn func(session) error) error {
	return db.inTurn(ctx, db.notes, fn)
}

func (db *DB) inTurn(ctx context.Context, p *pool, fn func(session) error) error {
	if db.turn != nil {
		select {
		case db.turn <- struct{}{}:
			defer func() { <-db.turn }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.prepareWanted(ctx)
	for n := 1; ; n++ {
		err := db.transact(ctx, p, nil, fn)
		if err == nil || !db.contended(err) {
			return err
		}
		if n >= db.attempts || ctx.Err() != nil {
			return fmt.Errorf("%w: %w", tidelock.Errorf(tidelock.Unavailable, "the database is busy; try again"), err)
		}
	}
}

func (db *DB) transact(ctx context.Context, p *pool, opts *sql.TxOptions, fn func(session) error) error {
	tx, err := p.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	if err := fn(session{dialect: &db.dialect, pool: p, tx: tx}); err != nil {
		tx.Rollback() // the connection is dropped if even this fails
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

// exec runs a statement and returns the number of rows it changed.
func (s session) exec(ctx context.Context, text string, args ...any) (int64, error) {
	var result sql.Result
	var err error
	if stmt := s.prepared(ctx, text); stmt != nil {
		result, err = stmt.ExecContext(ctx, bind(args)...)
	} else if s.tx != nil {
		result, err = s.tx.ExecContext(ctx, s.rebind(text), bind(args)...)
	} else {
		result, err = s.pool.ExecContext(ctx, s.rebind(text), bind(args)...)
	}
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// row runs a query for one row.
func (s session) row(ctx context.Context, text string, args ...any) *sql.Row {
	if stmt := s.prepared(ctx, text); stmt != nil {
		return stmt.QueryRowContext(ctx, bind(args)...)
	}
	if s.tx != nil {
		return s.tx.QueryRowContext(ctx, s.rebind(text), bind(args)...)
	}
	return s.pool.QueryRowContext(ctx, s.rebind(text), bind(args)...)
}

// rows runs a query for any number of rows.
func (s session) rows(ctx context.Context, text string, args ...any) (*sql.Rows, error) {
	if stmt := s.prepared(ctx, text); stmt != nil {
		return stmt.QueryContext(ctx, bind(args)...)
	}
	if s.tx != nil {
		return s.tx.QueryContext(ctx, s.rebind(text), bind(args)...)
	}
	return s.pool.QueryContext(ctx, s.rebind(text), bind(args)...)
}

// scanner is a row, of one or of many.
type scanner interface{ Scan(...any) error }

// many reads every row of a query; its result is never nil. Nouns say in an
// error what was read.
func many[T any](ctx context.Context, s session, nouns string, scan func(scanner) (T, error), text string, args ...any) (_ []T, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read %s: %w", nouns, err)
		}
	}()
	rows, err := s.rows(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	items := []T{}
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, rows.Err()
}

// one reads the row of a query; noun names it if there is none.
func one[T any](ctx context.Context, s session, noun string, scan func(scanner) (T, error), text string, args ...any) (T, error) {
	item, err := scan(s.row(ctx, text, args...))
	if err != nil {
		var zero T
		return zero, readError(noun, err)
	}
	return item, nil
}

// readError gives an error of reading one row its kind.
func readError(noun string, err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return notFound(noun)
	}
	return fmt.Errorf("read %s: %w", noun, err)
}

func notFound(noun string) error {
	return tidelock.Errorf(tidelock.NotFound, "%s not found", noun)
}

func taken(field string) error {
	return tidelock.FieldErrorf(tidelock.Conflict, field, "has already been taken")
}

// whole returns the zero value with an error, never half of a result.
func whole[T any](item T, err error) (T, error) {
	if err != nil {
		var zero T
		return zero, err
	}
	return item, nil
}

// change runs a statement that must change a row of a noun.
func (s session) change(ctx context.Context, noun, text string, args ...any) error {
	n, err := s.exec(ctx, text, args...)
	if err != nil {
		return fmt.Errorf("write %s: %w", noun, err)
	}
	if n == 0 {
		return notFound(noun)
	}
	return nil
}

// writeError gives an error of writing a noun its kind: a reference to a row
// that does not exist, one of referents, is NotFound.
func (d *dialect) writeError(noun, referents string, err error) error {
	if err == nil {
		return nil
	}
	if d.missingReference(err) {
		return notFound(referents)
	}
	return fmt.Errorf("write %s: %w", noun, err)
}

// bind turns arguments into what both drivers take: times into microseconds,
// named types into plain ones. PostgreSQL refuses text that is not UTF-8 or
// holds a zero byte; both engines see such text repaired, so that they agree.
func bind(args []any) []any {
	for i, arg := range args {
		switch a := arg.(type) {
		case nil, []byte, bool, int, int64:
		case time.Time:
			args[i] = micros(a)
		case string:
			args[i] = clean(a)
		default:
			switch v := reflect.ValueOf(a); v.Kind() {
			case reflect.String:
				args[i] = clean(v.String())
			case reflect.Int, reflect.Int64:
				args[i] = v.Int()
			}
		}
	}
	return args
}

func clean(s string) string {
	const replacement = "\uFFFD"
	return strings.ReplaceAll(strings.ToValidUTF8(s, replacement), "\x00", replacement)
}

// fold makes the form by which names and paths are compared.
func fold(s string) string { return strings.ToLower(clean(s)) }

// orNull is for references, whose columns hold no zero.
func orNull[ID ~int64](id ID) any {
	if id == 0 {
		return nil
	}
	return int64(id)
}

// idList is the argument of dialect.in.
func idList[ID ~int64](ids []ID) string {
	if ids == nil {
		ids = []ID{}
	}
	text, err := json.Marshal(ids)
	if err != nil {
		panic(err) // integers have no way to fail
	}
	return string(text)
}

// micros is a time as it is stored: microseconds since 1970, 0 for the zero
// time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// orNow fills in a time that the caller left to the store, and rounds to
// what is kept, so that what a method returns is what it stored.
func orNow(t time.Time) time.Time {
	if t.IsZero() {
		t = time.Now()
	}
	return kept(t)
}

func kept(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Microsecond)
}

// An instant reads what micros wrote.
type instant time.Time

func (t *instant) Scan(value any) error {
	n, ok := value.(int64)
	if !ok {
		return fmt.Errorf("read time: have a %T", value)
	}
	*t = instant{}
	if n != 0 {
		*t = instant(time.UnixMicro(n).UTC())
	}
	return nil
}

// A list is a query that is narrowed, counted, ordered and cut into pages.
type list struct {
	columns string
	from    string
	where   []string
	args    []any
	order   string
}

func (l *list) filter(condition string, args ...any) {
	l.where = append(l.where, condition)
	l.args = append(l.args, args...)
}

// search keeps rows whose columns, holding folded text, contain a text.
func (l *list) search(text string, columns ...string) {
	if text == "" {
		return
	}
	pattern := "%" + likeEscaper.Replace(fold(text)) + "%"
	var any []string
	for _, c := range columns {
		any = append(any, c+` LIKE ? ESCAPE '\'`)
		l.args = append(l.args, pattern)
	}
	l.where = append(l.where, "("+strings.Join(any, " OR ")+")")
}

var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// page reads one page of a list, and counts all of it.
func page[T any](ctx context.Context, s session, nouns string, l list, p tidelock.Page, scan func(scanner) (T, error)) ([]T, int, error) {
	s = s.rarely()
	from := " FROM " + l.from
	if len(l.where) > 0 {
		from += " WHERE " + strings.Join(l.where, " AND ")
	}
	text := "SELECT " + l.columns + from + " ORDER BY " + l.order
	if p.PerPage <= 0 {
		items, err := many(ctx, s, nouns, scan, text, l.args...)
		return items, len(items), err
	}

	var total int
	if err := s.row(ctx, "SELECT COUNT(*)"+from, l.args...).Scan(&total); err != nil {
		return nil, 0, fmt.Errorf("count %s: %w", nouns, err)
	}
	before, per := int64(max(p.Number, 1)-1), int64(p.PerPage)
	offset := int64(math.MaxInt64)
	if before <= math.MaxInt64/per {
		offset = before * per
	}
	items, err := many(ctx, s, nouns, scan, text+" LIMIT ? OFFSET ?", append(l.args, per, offset)...)
	return items, total, err
}

// pageOf is page in a transaction of its own.
func pageOf[T any](ctx context.Context, db *DB, nouns string, l list, p tidelock.Page, scan func(scanner) (T, error)) (items []T, total int, err error) {
	err = db.read(ctx, func(s session) (err error) {
		items, total, err = page(ctx, s, nouns, l, p, scan)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return items, total, nil
}
