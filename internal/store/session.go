package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

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

// joined is the key of the transaction that Atomically began.
type joined struct{}

// Atomically makes all that fn does with the context it is given one
// transaction, which survives a power failure once Atomically has returned
// nil. Nested calls join the outer one.
func (db *DB) Atomically(ctx context.Context, fn func(context.Context) error) error {
	return db.write(ctx, func(s session) error {
		return fn(context.WithValue(ctx, joined{}, s))
	})
}

// transaction returns the one that ctx is part of.
func transaction(ctx context.Context) (session, bool) {
	s, ok := ctx.Value(joined{}).(session)
	return s, ok
}

// point returns a session for a query that stands alone.
func (db *DB) point(ctx context.Context) session {
	if s, ok := transaction(ctx); ok {
		return s
	}
	db.reads.prepareWanted(ctx)
	return session{dialect: &db.dialect, pool: db.reads}
}

// read runs queries that must agree with each other.
func (db *DB) read(ctx context.Context, fn func(session) error) error {
	if s, ok := transaction(ctx); ok {
		return fn(s)
	}
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
	if s, ok := transaction(ctx); ok {
		return fn(s)
	}
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
