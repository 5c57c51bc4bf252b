package store

import (
	"context"
	"fmt"
	"math"
	"strings"

	"tidelock.dev"
)

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
	if len(pattern) > maxPattern {
		l.filter("1 = 0")
		return
	}
	var matches []string
	for _, c := range columns {
		matches = append(matches, c+` LIKE ? ESCAPE '\'`)
		l.args = append(l.args, pattern)
	}
	l.where = append(l.where, "("+strings.Join(matches, " OR ")+")")
}

// maxPattern is the longest pattern that SQLite looks for. It is longer than
// anything that is searched.
const maxPattern = 50_000

var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// span keeps rows whose time is within a span; a time of 0 is within none.
func (l *list) span(within tidelock.Span, column string) {
	if !within.Since.IsZero() {
		l.filter(column+` >= ?`, within.Since)
	}
	if !within.Before.IsZero() {
		l.filter(column+` <> 0 AND `+column+` < ?`, within.Before)
	}
}

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
