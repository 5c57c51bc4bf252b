package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"tidelock.dev"
)

const (
	userColumns = `u.id, u.username, u.name, u.email, u.admin, u.bot, u.blocked, u.created_at, COALESCE(n.id, 0)`
	userTables  = `users u LEFT JOIN namespaces n ON n.owner_id = u.id`
)

func scanUser(row scanner) (u tidelock.User, err error) {
	err = row.Scan(&u.ID, &u.Username, &u.Name, &u.Email, &u.Admin, &u.Bot, &u.Blocked, (*instant)(&u.CreatedAt), &u.Namespace)
	return u, err
}

// CreateUser makes the user and, unless it is a bot, its namespace.
func (db *DB) CreateUser(ctx context.Context, u tidelock.User) (tidelock.User, error) {
	err := db.write(ctx, func(s session) (err error) {
		u, err = s.createUser(ctx, u)
		return err
	})
	return whole(u, err)
}

const insertUser = `
	INSERT INTO users (username, username_key, name, name_key, email, admin, bot, blocked, created_at)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
	ON CONFLICT (username_key) DO NOTHING
	RETURNING id`

func (s session) createUser(ctx context.Context, u tidelock.User) (tidelock.User, error) {
	if !u.Bot {
		if err := s.changeRoutes(ctx); err != nil {
			return u, err
		}
	}
	u.CreatedAt = orNow(u.CreatedAt)
	err := s.row(ctx, insertUser, u.Username, fold(u.Username), u.Name, fold(u.Name), u.Email,
		u.Admin, u.Bot, u.Blocked, u.CreatedAt).Scan(&u.ID)
	if errors.Is(err, sql.ErrNoRows) {
		return u, taken("username")
	}
	if err != nil {
		return u, fmt.Errorf("write user: %w", err)
	}
	u.Namespace = 0
	if u.Bot {
		return u, nil
	}
	n, err := s.createNamespace(ctx, "username", tidelock.Namespace{
		Kind:       tidelock.UserNamespace,
		Path:       u.Username,
		Name:       u.Name,
		Visibility: tidelock.Public,
		Owner:      u.ID,
		CreatedAt:  u.CreatedAt,
	})
	u.Namespace = n.ID
	return u, err
}

const selectUser = `SELECT ` + userColumns + ` FROM ` + userTables + ` WHERE u.id = ?`

func (db *DB) User(ctx context.Context, id tidelock.UserID) (tidelock.User, error) {
	return one(ctx, db.point(ctx), "user", scanUser, selectUser, id)
}

const selectUserByName = `SELECT ` + userColumns + ` FROM ` + userTables + ` WHERE u.username_key = ?`

func (db *DB) UserByName(ctx context.Context, username string) (tidelock.User, error) {
	return one(ctx, db.point(ctx), "user", scanUser, selectUserByName, fold(username))
}

func (db *DB) Users(ctx context.Context, f tidelock.UserFilter, p tidelock.Page) ([]tidelock.User, int, error) {
	l := list{columns: userColumns, from: userTables, order: `u.id`}
	if f.Username != "" {
		l.filter(`u.username_key = ?`, fold(f.Username))
	}
	if f.NoBots {
		l.filter(`NOT u.bot`)
	}
	l.search(f.Search, `u.username_key`, `u.name_key`)
	return pageOf(ctx, db, "users", l, p, scanUser)
}

const (
	lockUser   = `SELECT id FROM users WHERE id = ?`
	updateUser = `UPDATE users SET name = ?, name_key = ?, email = ?, admin = ?, blocked = ? WHERE id = ?`
)

// ChangeUser writes what a function makes of a user.
func (db *DB) ChangeUser(ctx context.Context, id tidelock.UserID, edit func(*tidelock.User) error) (tidelock.User, error) {
	var u tidelock.User
	err := db.write(ctx, func(s session) error {
		err := s.row(ctx, lockUser+s.lockRow, id).Scan(&id)
		if err != nil {
			return readError("user", err)
		}
		if u, err = one(ctx, s, "user", scanUser, selectUser, id); err != nil {
			return err
		}
		if err := edit(&u); err != nil {
			return err
		}
		return s.change(ctx, "user", updateUser, u.Name, fold(u.Name), u.Email, u.Admin, u.Blocked, id)
	})
	return whole(u, err)
}

const lockAdministrators = `SELECT id FROM users WHERE admin AND NOT blocked ORDER BY id`

// Administrators keeps those who can act from changing until the transaction
// ends.
func (db *DB) Administrators(ctx context.Context) (ids []tidelock.UserID, err error) {
	err = db.write(ctx, func(s session) error {
		ids, err = many(ctx, s, "administrators", func(row scanner) (id tidelock.UserID, err error) {
			err = row.Scan(&id)
			return id, err
		}, lockAdministrators+s.lockRow)
		return err
	})
	return whole(ids, err)
}
