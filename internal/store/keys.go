package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"tidelock.dev"
)

const keyColumns = `k.id, COALESCE(k.user_id, 0), k.title, k.public, k.fingerprint, k.creator_id, k.created_at, k.expires_at, k.last_used`

func keyFields(k *tidelock.Key) []any {
	return []any{&k.ID, &k.User, &k.Title, &k.Public, &k.Fingerprint, &k.Creator,
		(*instant)(&k.CreatedAt), (*instant)(&k.ExpiresAt), (*instant)(&k.LastUsed)}
}

func scanKey(row scanner) (k tidelock.Key, err error) {
	err = row.Scan(keyFields(&k)...)
	return k, err
}

// CreateKey stores the key of a person.
func (db *DB) CreateKey(ctx context.Context, k tidelock.Key) (tidelock.Key, error) {
	err := db.write(ctx, func(s session) (err error) {
		k, err = s.createKey(ctx, k)
		return err
	})
	return whole(k, err)
}

const insertKey = `
	INSERT INTO keys (user_id, title, public, fingerprint, creator_id, created_at, expires_at, last_used)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?)
	ON CONFLICT (fingerprint) DO NOTHING
	RETURNING id`

func (s session) createKey(ctx context.Context, k tidelock.Key) (tidelock.Key, error) {
	k.CreatedAt, k.ExpiresAt, k.LastUsed = orNow(k.CreatedAt), kept(k.ExpiresAt), kept(k.LastUsed)
	err := s.row(ctx, insertKey, orNull(k.User), k.Title, k.Public, k.Fingerprint,
		k.Creator, k.CreatedAt, k.ExpiresAt, k.LastUsed).Scan(&k.ID)
	if errors.Is(err, sql.ErrNoRows) {
		return k, taken("fingerprint_sha256")
	}
	return k, s.writeError("key", "user", err)
}

const selectKey = `SELECT ` + keyColumns + ` FROM keys k WHERE k.id = ?`

func (db *DB) Key(ctx context.Context, id tidelock.KeyID) (tidelock.Key, error) {
	return one(ctx, db.point(ctx), "key", scanKey, selectKey, id)
}

const selectKeyByFingerprint = `SELECT ` + keyColumns + ` FROM keys k WHERE k.fingerprint = ?`

func (db *DB) KeyByFingerprint(ctx context.Context, fingerprint string) (tidelock.Key, error) {
	return one(ctx, db.point(ctx), "key", scanKey, selectKeyByFingerprint, fingerprint)
}

func (db *DB) Keys(ctx context.Context, f tidelock.KeyFilter, p tidelock.Page) ([]tidelock.Key, int, error) {
	l := list{columns: keyColumns, from: `keys k`, order: `k.id`}
	if f.User != 0 {
		l.filter(`k.user_id = ?`, f.User)
	}
	if f.Fingerprint != "" {
		l.filter(`k.fingerprint = ?`, f.Fingerprint)
	}
	if f.Deploy {
		l.filter(`k.user_id IS NULL`)
	}
	return pageOf(ctx, db, "keys", l, p, scanKey)
}

const deleteKey = `DELETE FROM keys WHERE id = ?`

// DeleteKey removes a key from wherever it is enabled.
func (db *DB) DeleteKey(ctx context.Context, id tidelock.KeyID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "key", deleteKey, id) })
}

const (
	keyLastUsed = `SELECT last_used FROM keys WHERE id = ?`
	touchKey    = `UPDATE keys SET last_used = ? WHERE id = ? AND last_used < ?`
)

// TouchKey records a use, unless one within the last minute is recorded.
func (db *DB) TouchKey(ctx context.Context, id tidelock.KeyID, at time.Time) error {
	return db.touch(ctx, "key", keyLastUsed, touchKey, int64(id), at)
}

const selectLiveKeys = `
	SELECT k.id
	FROM keys k LEFT JOIN users u ON u.id = k.user_id
	WHERE (k.expires_at = 0 OR k.expires_at > ?) AND (u.id IS NULL OR NOT u.blocked) AND k.id IN (%s)
	ORDER BY k.id`

func (db *DB) LiveKeys(ctx context.Context, ids []tidelock.KeyID, at time.Time) ([]tidelock.KeyID, error) {
	s := db.point(ctx)
	return many(ctx, s, "keys", func(row scanner) (id tidelock.KeyID, err error) {
		err = row.Scan(&id)
		return id, err
	}, fmt.Sprintf(selectLiveKeys, s.in), at, idList(ids))
}

const (
	deployKeyColumns = keyColumns + `, d.title, COALESCE(d.project_id, 0), COALESCE(d.namespace_id, 0), d.can_push, d.enabled_at`
	deployKeyTables  = `deploy_keys d JOIN keys k ON k.id = d.key_id`
	ofHolder         = `(d.project_id = ? OR d.namespace_id = ?)`
)

func scanDeployKey(row scanner) (k tidelock.DeployKey, err error) {
	err = row.Scan(append(keyFields(&k.Key), &k.Title, &k.Project, &k.Namespace, &k.CanPush, (*instant)(&k.EnabledAt))...)
	return k, err
}

const insertDeployKey = `
	INSERT INTO deploy_keys (key_id, project_id, namespace_id, title, can_push, enabled_at)
	VALUES (?, ?, ?, ?, ?, ?)
	ON CONFLICT DO NOTHING`

// EnableDeployKey enables a key in its holder; a key without an id is stored
// first.
func (db *DB) EnableDeployKey(ctx context.Context, k tidelock.DeployKey) (tidelock.DeployKey, error) {
	if (k.Project == 0) == (k.Namespace == 0) {
		return tidelock.DeployKey{}, fmt.Errorf("enable deploy key: holder %+v is not exactly one project or group", k.Holder)
	}
	k.User, k.EnabledAt = 0, orNow(k.EnabledAt)
	stored := k.ID
	err := db.write(ctx, func(s session) (err error) {
		if k.ID = stored; stored == 0 {
			if k.Key, err = s.createKey(ctx, k.Key); err != nil {
				return err
			}
		}
		n, err := s.exec(ctx, insertDeployKey, k.ID, orNull(k.Project), orNull(k.Namespace), k.Title, k.CanPush, k.EnabledAt)
		if err == nil && n == 0 {
			return taken("deploy_key")
		}
		return s.writeError("deploy key", "key, project or group", err)
	})
	return whole(k, err)
}

const selectDeployKey = `SELECT ` + deployKeyColumns + ` FROM ` + deployKeyTables + ` WHERE d.key_id = ? AND ` + ofHolder

func (db *DB) DeployKey(ctx context.Context, id tidelock.KeyID, h tidelock.Holder) (tidelock.DeployKey, error) {
	return one(ctx, db.point(ctx), "deploy key", scanDeployKey, selectDeployKey, id, orNull(h.Project), orNull(h.Namespace))
}

// DeployKeys lists those enabled in exactly a holder.
func (db *DB) DeployKeys(ctx context.Context, h tidelock.Holder, p tidelock.Page) ([]tidelock.DeployKey, int, error) {
	l := list{columns: deployKeyColumns, from: deployKeyTables, order: `k.id`}
	l.filter(ofHolder, orNull(h.Project), orNull(h.Namespace))
	return pageOf(ctx, db, "deploy keys", l, p, scanDeployKey)
}

const selectEnabled = `SELECT ` + deployKeyColumns + ` FROM ` + deployKeyTables + ` WHERE d.key_id IN (%s) ORDER BY d.key_id, d.enabled_at, d.project_id, d.namespace_id`

// Enabled lists where keys are enabled.
func (db *DB) Enabled(ctx context.Context, ids ...tidelock.KeyID) ([]tidelock.DeployKey, error) {
	s := db.point(ctx)
	return many(ctx, s, "deploy keys", scanDeployKey, fmt.Sprintf(selectEnabled, s.in), idList(ids))
}

const updateDeployKey = `UPDATE deploy_keys SET title = ?, can_push = ? WHERE key_id = ? AND (project_id = ? OR namespace_id = ?)`

// UpdateDeployKey writes what a holder says of a key: its title there, and
// whether it may push.
func (db *DB) UpdateDeployKey(ctx context.Context, k tidelock.DeployKey) error {
	return db.write(ctx, func(s session) error {
		return s.change(ctx, "deploy key", updateDeployKey, k.Title, k.CanPush, k.ID, orNull(k.Project), orNull(k.Namespace))
	})
}

const (
	deleteDeployKey = `DELETE FROM deploy_keys WHERE key_id = ? AND (project_id = ? OR namespace_id = ?)`

	// A key that comes back to a project begins anew there.
	deleteKeyFromBranches = `
		DELETE FROM protected_branch_keys
		WHERE key_id = ? AND branch_id IN (SELECT id FROM protected_branches WHERE project_id = ?)`

	// removeUnusedKeys follows every removal of rows from deploy_keys.
	removeUnusedKeys = `DELETE FROM keys WHERE user_id IS NULL AND NOT EXISTS (SELECT 1 FROM deploy_keys d WHERE d.key_id = keys.id)`
)

// DisableDeployKey takes a key from a holder, and from the protected branches
// of a project, and removes one that is then enabled nowhere.
func (db *DB) DisableDeployKey(ctx context.Context, id tidelock.KeyID, h tidelock.Holder) error {
	return db.write(ctx, func(s session) error {
		if err := s.change(ctx, "deploy key", deleteDeployKey, id, orNull(h.Project), orNull(h.Namespace)); err != nil {
			return err
		}
		if _, err := s.exec(ctx, deleteKeyFromBranches, id, orNull(h.Project)); err != nil {
			return fmt.Errorf("take deploy key from protected branches: %w", err)
		}
		return s.removeUnusedKeys(ctx)
	})
}

func (s session) removeUnusedKeys(ctx context.Context) error {
	if _, err := s.exec(ctx, removeUnusedKeys); err != nil {
		return fmt.Errorf("remove unused deploy keys: %w", err)
	}
	return nil
}

const selectKeyRights = aboveHolder + `
	SELECT COUNT(*), COALESCE(SUM(CASE WHEN can_push THEN 1 ELSE 0 END), 0)
	FROM deploy_keys
	WHERE key_id = ? AND (project_id = ? OR namespace_id IN (SELECT id FROM above))`

// KeyRights says what a deploy key may do in a holder, by itself or by a group
// above it.
func (db *DB) KeyRights(ctx context.Context, id tidelock.KeyID, h tidelock.Holder) (pull, push bool, err error) {
	var enabled, pushing int
	err = db.point(ctx).row(ctx, selectKeyRights, h.Project, h.Namespace, id, h.Project).Scan(&enabled, &pushing)
	if err != nil {
		return false, false, fmt.Errorf("read rights of key: %w", err)
	}
	return enabled > 0, pushing > 0, nil
}

const (
	selectBranchKeys = `
		SELECT b.branch_id, b.key_id
		FROM protected_branch_keys b JOIN protected_branches p ON p.id = b.branch_id
		WHERE p.project_id = ?
		ORDER BY b.branch_id, b.key_id`
	deleteBranchKeys = `DELETE FROM protected_branch_keys WHERE branch_id = ?`
	insertBranchKey  = `INSERT INTO protected_branch_keys (branch_id, key_id) VALUES (?, ?) ON CONFLICT DO NOTHING`
)

// readBranchKeys fills in which deploy keys may push to the protected branches
// of a project.
func (s session) readBranchKeys(ctx context.Context, project tidelock.ProjectID, branches []tidelock.ProtectedBranch) error {
	type row struct {
		branch int64
		key    tidelock.KeyID
	}
	rows, err := many(ctx, s, "keys of protected branches", func(from scanner) (r row, err error) {
		err = from.Scan(&r.branch, &r.key)
		return r, err
	}, selectBranchKeys, project)
	if err != nil {
		return err
	}
	for _, r := range rows {
		for i := range branches {
			if b := &branches[i]; b.ID == r.branch {
				b.Keys = append(b.Keys, r.key)
			}
		}
	}
	return nil
}

// writeBranchKeys lets exactly a protected branch's Keys push to it.
func (s session) writeBranchKeys(ctx context.Context, b tidelock.ProtectedBranch) error {
	if _, err := s.exec(ctx, deleteBranchKeys, b.ID); err != nil {
		return fmt.Errorf("write keys of protected branch: %w", err)
	}
	for _, key := range b.Keys {
		if _, err := s.exec(ctx, insertBranchKey, b.ID, key); err != nil {
			return s.writeError("key of protected branch", "key", err)
		}
	}
	return nil
}
