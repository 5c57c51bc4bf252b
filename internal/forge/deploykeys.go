package forge

import (
	"context"
	"fmt"

	"tidelock.dev"
)

// NewDeployKey is what a deploy key is made from.
type NewDeployKey struct {
	NewKey
	CanPush bool
}

// AddDeployKey enables a deploy key in a project or group. A key that is
// enabled there already is left as it is, and returned. One that is enabled
// where the caller manages deploy keys too is enabled here as well; any other
// key that is known already is taken.
func (f *Forge) AddDeployKey(ctx context.Context, p Principal, t Target, n NewDeployKey) (tidelock.DeployKey, error) {
	if err := f.mayManageDeployKeys(ctx, p, t); err != nil {
		return tidelock.DeployKey{}, err
	}
	key, err := n.build(p, f.now().UTC())
	if err != nil {
		return tidelock.DeployKey{}, err
	}
	known, err := f.store.KeyByFingerprint(ctx, key.Fingerprint)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
	case err != nil:
		return tidelock.DeployKey{}, err
	default:
		enabled, err := f.enabledFor(ctx, p, known)
		if err != nil {
			return tidelock.DeployKey{}, err
		}
		if enabled == nil {
			return tidelock.DeployKey{}, tidelock.FieldErrorf(tidelock.Conflict, "fingerprint_sha256", "has already been taken")
		}
		for _, k := range enabled {
			if k.Holder == t.holder() {
				return k, nil
			}
		}
		known.Title = key.Title // each place has its own
		key = known
	}
	return f.enable(ctx, p, t, tidelock.DeployKey{Key: key, CanPush: n.CanPush})
}

// EnableDeployKey enables a deploy key, which may be one of any project or
// group where the caller manages deploy keys, to read in another.
func (f *Forge) EnableDeployKey(ctx context.Context, p Principal, t Target, id tidelock.KeyID) (tidelock.DeployKey, error) {
	if err := f.mayManageDeployKeys(ctx, p, t); err != nil {
		return tidelock.DeployKey{}, err
	}
	key, err := f.store.Key(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.DeployKey{}, errNoDeployKey()
	}
	if err != nil {
		return tidelock.DeployKey{}, err
	}
	enabled, err := f.enabledFor(ctx, p, key)
	if err != nil {
		return tidelock.DeployKey{}, err
	}
	if enabled == nil {
		return tidelock.DeployKey{}, errNoDeployKey()
	}
	for _, k := range enabled {
		if k.Holder == t.holder() {
			return k, nil
		}
	}
	return f.enable(ctx, p, t, tidelock.DeployKey{Key: key})
}

func (f *Forge) enable(ctx context.Context, p Principal, t Target, k tidelock.DeployKey) (tidelock.DeployKey, error) {
	k.Holder, k.EnabledAt = t.holder(), f.now().UTC()
	var made tidelock.DeployKey
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		made, err = f.store.EnableDeployKey(ctx, k)
		return change{act: "deploy key enabled", on: t, subject: deployKeySubject(made), detail: deployKeyDetail(made)}, err
	})
	if err != nil {
		return tidelock.DeployKey{}, err
	}
	by, _ := p.ids()
	f.log.InfoContext(ctx, "deploy key enabled", "key", made.ID, "in", t.String(), "can_push", made.CanPush, "by", by)
	return made, nil
}

// enabledFor lists where a deploy key is enabled, if the caller manages deploy
// keys in any of those places; nil says that it is none of the caller's
// business, or no deploy key.
func (f *Forge) enabledFor(ctx context.Context, p Principal, key tidelock.Key) ([]tidelock.DeployKey, error) {
	if key.User != 0 {
		return nil, nil
	}
	enabled, err := f.store.Enabled(ctx, key.ID)
	if err != nil {
		return nil, err
	}
	for _, k := range enabled {
		at, err := f.targetOf(ctx, k.Holder)
		if tidelock.KindOf(err) == tidelock.NotFound {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		switch err := f.mayManageDeployKeys(ctx, p, at); tidelock.KindOf(err) {
		case tidelock.Denied, tidelock.NotFound, tidelock.Unauthenticated:
		default:
			if err != nil {
				return nil, err
			}
			return enabled, nil
		}
	}
	return nil, nil
}

func (f *Forge) targetOf(ctx context.Context, h tidelock.Holder) (Target, error) {
	if h.Project != 0 {
		project, err := f.store.Project(ctx, h.Project)
		return OnProject(project), err
	}
	group, err := f.store.Namespace(ctx, h.Namespace)
	return OnGroup(group), err
}

func (f *Forge) mayManageDeployKeys(ctx context.Context, p Principal, t Target) error {
	if t.Group != nil && t.Group.Kind != tidelock.GroupNamespace {
		return errNoGroup()
	}
	return f.Allow(ctx, p, t.pick(ManageDeployKeys, ManageGroupDeployKeys), t)
}

// DeployKeysOf lists the deploy keys enabled in exactly a project or group.
func (f *Forge) DeployKeysOf(ctx context.Context, p Principal, t Target, page tidelock.Page) ([]tidelock.DeployKey, int, error) {
	if err := f.Allow(ctx, p, t.pick(ReadDeployKeys, ReadGroupDeployKeys), t); err != nil {
		return nil, 0, err
	}
	return f.store.DeployKeys(ctx, t.holder(), page)
}

// DeployKeyOf reads one deploy key of a project or group.
func (f *Forge) DeployKeyOf(ctx context.Context, p Principal, t Target, id tidelock.KeyID) (tidelock.DeployKey, error) {
	return f.deployKey(ctx, p, t, id, t.pick(ReadDeployKeys, ReadGroupDeployKeys))
}

func (f *Forge) deployKey(ctx context.Context, p Principal, t Target, id tidelock.KeyID, a Action) (tidelock.DeployKey, error) {
	if err := f.Allow(ctx, p, a, t); err != nil {
		return tidelock.DeployKey{}, err
	}
	k, err := f.store.DeployKey(ctx, id, t.holder())
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.DeployKey{}, errNoDeployKey()
	}
	return k, err
}

// A DeployKeyEdit says what to change; nil leaves as it is.
type DeployKeyEdit struct {
	Title   *string
	CanPush *bool
}

// EditDeployKey changes what a project or group says of a deploy key: its
// title there, and whether it may push.
func (f *Forge) EditDeployKey(ctx context.Context, p Principal, t Target, id tidelock.KeyID, e DeployKeyEdit) (tidelock.DeployKey, error) {
	k, err := f.deployKey(ctx, p, t, id, t.pick(ManageDeployKeys, ManageGroupDeployKeys))
	if err != nil {
		return tidelock.DeployKey{}, err
	}
	if e.Title != nil {
		if err := checkKeyTitle(*e.Title); err != nil {
			return tidelock.DeployKey{}, err
		}
		k.Title = *e.Title
	}
	if e.CanPush != nil {
		k.CanPush = *e.CanPush
	}
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return change{act: "deploy key changed", on: t, subject: deployKeySubject(k), detail: deployKeyDetail(k)}, f.store.UpdateDeployKey(ctx, k)
	})
	if err != nil {
		return tidelock.DeployKey{}, err
	}
	return k, nil
}

// RemoveDeployKey takes a deploy key from a project or group. One that is
// enabled nowhere any more is gone, and its connections are cut.
func (f *Forge) RemoveDeployKey(ctx context.Context, p Principal, t Target, id tidelock.KeyID) error {
	k, err := f.deployKey(ctx, p, t, id, t.pick(ManageDeployKeys, ManageGroupDeployKeys))
	if err != nil {
		return err
	}
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return change{act: "deploy key disabled", on: t, subject: deployKeySubject(k), detail: deployKeyDetail(k)}, f.store.DisableDeployKey(ctx, id, t.holder())
	})
	if err != nil {
		return err
	}
	by, _ := p.ids()
	f.log.InfoContext(ctx, "deploy key disabled", "key", id, "in", t.String(), "by", by)
	return nil
}

// AnyDeployKey is a deploy key with all the places where it is enabled.
type AnyDeployKey struct {
	tidelock.Key
	Enabled []tidelock.DeployKey
}

// DeployKeys lists all deploy keys, for those who oversee the forge.
func (f *Forge) DeployKeys(ctx context.Context, p Principal, page tidelock.Page) ([]AnyDeployKey, int, error) {
	if err := f.Allow(ctx, p, Oversee, OnForge); err != nil {
		return nil, 0, err
	}
	keys, total, err := f.store.Keys(ctx, tidelock.KeyFilter{Deploy: true}, page)
	if err != nil {
		return nil, 0, err
	}
	all := make([]AnyDeployKey, len(keys))
	ids := make([]tidelock.KeyID, len(keys))
	at := make(map[tidelock.KeyID]int, len(keys))
	for i, k := range keys {
		all[i].Key, ids[i], at[k.ID] = k, k.ID, i
	}
	enabled, err := f.store.Enabled(ctx, ids...)
	if err != nil {
		return nil, 0, err
	}
	for _, k := range enabled {
		all[at[k.ID]].Enabled = append(all[at[k.ID]].Enabled, k)
	}
	return all, total, nil
}

func errNoDeployKey() error { return tidelock.Errorf(tidelock.NotFound, "Deploy Key Not Found") }

func deployKeySubject(k tidelock.DeployKey) string {
	return fmt.Sprintf("deploy key %d %q", k.ID, k.Title)
}

func deployKeyDetail(k tidelock.DeployKey) string {
	may := "read"
	if k.CanPush {
		may = "read and push"
	}
	return "may " + may + ", fingerprint " + k.Fingerprint
}
