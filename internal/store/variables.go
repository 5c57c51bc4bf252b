package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"tidelock.dev"
)

const variableColumns = `v.id, COALESCE(v.project_id, 0), COALESCE(v.namespace_id, 0), v.key, v.scope, v.value, v.kind,
	v.protected, v.masked, v.hidden, v.raw, v.description`

// scanVariable opens what was sealed.
func (db *DB) scanVariable(row scanner) (v tidelock.Variable, err error) {
	var sealed []byte
	err = row.Scan(&v.ID, &v.Project, &v.Namespace, &v.Key, &v.Scope, &sealed, &v.Kind,
		&v.Protected, &v.Masked, &v.Hidden, &v.Raw, &v.Description)
	if err != nil {
		return v, err
	}
	if db.box == nil {
		return v, errNoSeal
	}
	value, err := db.box.Open(variablePurpose(v), sealed)
	v.Value = tidelock.NewSecret(value)
	return v, err
}

func (db *DB) sealVariable(v tidelock.Variable) ([]byte, error) {
	if db.box == nil {
		return nil, errNoSeal
	}
	return db.box.Seal(variablePurpose(v), v.Value.Reveal()), nil
}

// variablePurpose keeps the value of one variable from being read as another's.
func variablePurpose(v tidelock.Variable) string {
	return fmt.Sprintf("variable %q for %q of project %d or group %d", v.Key, v.Scope, v.Project, v.Namespace)
}

const insertVariable = `
	INSERT INTO variables (project_id, namespace_id, key, scope, value, kind, protected, masked, hidden, raw, description)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
	ON CONFLICT DO NOTHING
	RETURNING id`

func (db *DB) CreateVariable(ctx context.Context, v tidelock.Variable) (tidelock.Variable, error) {
	sealed, err := db.sealVariable(v)
	if err != nil {
		return tidelock.Variable{}, err
	}
	err = db.write(ctx, func(s session) error {
		err := s.row(ctx, insertVariable, orNull(v.Project), orNull(v.Namespace), v.Key, v.Scope, sealed, v.Kind,
			v.Protected, v.Masked, v.Hidden, v.Raw, v.Description).Scan(&v.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return variableTaken(v)
		}
		return s.writeError("variable", "project or group", err)
	})
	return whole(v, err)
}

func variableTaken(v tidelock.Variable) error {
	return tidelock.FieldErrorf(tidelock.Conflict, "key", "(%s) has already been taken", v.Key)
}

const (
	lockVariable   = `SELECT id FROM variables WHERE id = ?`
	selectVariable = `SELECT ` + variableColumns + ` FROM variables v WHERE v.id = ?`
	scopeTaken     = `
		SELECT COUNT(*) FROM variables
		WHERE key = ? AND scope = ? AND (project_id = ? OR namespace_id = ?) AND id <> ?`
	updateVariable = `
		UPDATE variables
		SET scope = ?, value = ?, kind = ?, protected = ?, masked = ?, hidden = ?, raw = ?, description = ?
		WHERE id = ?`
)

// ChangeVariable writes what a function makes of a variable.
func (db *DB) ChangeVariable(ctx context.Context, id tidelock.VariableID, edit func(*tidelock.Variable) error) (tidelock.Variable, error) {
	var v tidelock.Variable
	err := db.write(ctx, func(s session) error {
		err := s.row(ctx, lockVariable+s.lockRow, id).Scan(&id)
		if err != nil {
			return readError("variable", err)
		}
		if v, err = one(ctx, s, "variable", db.scanVariable, selectVariable, id); err != nil {
			return err
		}
		if err := edit(&v); err != nil {
			return err
		}
		var taken int
		if err := s.row(ctx, scopeTaken, v.Key, v.Scope, orNull(v.Project), orNull(v.Namespace), id).Scan(&taken); err != nil {
			return fmt.Errorf("look for a variable: %w", err)
		}
		if taken > 0 {
			return variableTaken(v)
		}
		sealed, err := db.sealVariable(v)
		if err != nil {
			return err
		}
		return s.change(ctx, "variable", updateVariable, v.Scope, sealed, v.Kind, v.Protected, v.Masked, v.Hidden, v.Raw, v.Description, id)
	})
	return whole(v, err)
}

const deleteVariable = `DELETE FROM variables WHERE id = ?`

func (db *DB) DeleteVariable(ctx context.Context, id tidelock.VariableID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "variable", deleteVariable, id) })
}

func (db *DB) Variables(ctx context.Context, f tidelock.VariableFilter, p tidelock.Page) ([]tidelock.Variable, int, error) {
	l := list{columns: variableColumns, from: `variables v`, order: `v.id`}
	l.filter(`(v.project_id = ? OR v.namespace_id = ?)`, orNull(f.Project), orNull(f.Namespace))
	if f.Key != "" {
		l.filter(`v.key = ?`, f.Key)
	}
	if f.Scope != nil {
		l.filter(`v.scope = ?`, *f.Scope)
	}
	return pageOf(ctx, db, "variables", l, p, db.scanVariable)
}
