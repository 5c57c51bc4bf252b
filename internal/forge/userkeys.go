package forge

import (
	"context"
	"fmt"

	"tidelock.dev"
)

// AddKey gives a person an SSH key: themselves, or an administrator anybody.
func (f *Forge) AddKey(ctx context.Context, p Principal, user tidelock.UserID, n NewKey) (tidelock.Key, error) {
	action := Administer
	if p.User != nil && p.User.ID == user {
		action = ManageOwnKeys
	}
	if err := f.Allow(ctx, p, action, OnForge); err != nil {
		return tidelock.Key{}, err
	}
	owner, err := f.store.User(ctx, user)
	if err != nil {
		return tidelock.Key{}, err
	}
	if owner.Bot {
		return tidelock.Key{}, tidelock.Errorf(tidelock.Invalid, "a bot has no SSH keys; use a deploy key")
	}
	key, err := n.build(p, f.now().UTC())
	if err != nil {
		return tidelock.Key{}, err
	}
	key.User = user
	var made tidelock.Key
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		made, err = f.store.CreateKey(ctx, key)
		return change{act: "SSH key added", subject: keySubject(made), detail: keyDetail(made, owner)}, err
	})
	if err != nil {
		return tidelock.Key{}, err
	}
	f.log.InfoContext(ctx, "SSH key added", "key", made.ID, "user", user, "by", made.Creator)
	return made, nil
}

// OwnKeys lists the caller's SSH keys.
func (f *Forge) OwnKeys(ctx context.Context, p Principal, page tidelock.Page) ([]tidelock.Key, int, error) {
	if err := f.Allow(ctx, p, ReadOwnKeys, OnForge); err != nil {
		return nil, 0, err
	}
	return f.store.Keys(ctx, tidelock.KeyFilter{User: p.User.ID}, page)
}

// OwnKey reads one of the caller's SSH keys.
func (f *Forge) OwnKey(ctx context.Context, p Principal, id tidelock.KeyID) (tidelock.Key, error) {
	if err := f.Allow(ctx, p, ReadOwnKeys, OnForge); err != nil {
		return tidelock.Key{}, err
	}
	return f.keyOf(ctx, p.User.ID, id)
}

// KeysOf lists the SSH keys of a user, which are public.
func (f *Forge) KeysOf(ctx context.Context, p Principal, user tidelock.UserID, page tidelock.Page) ([]tidelock.Key, int, error) {
	if err := f.Allow(ctx, p, ReadUsers, OnForge); err != nil {
		return nil, 0, err
	}
	if _, err := f.store.User(ctx, user); err != nil {
		return nil, 0, err
	}
	return f.store.Keys(ctx, tidelock.KeyFilter{User: user}, page)
}

// KeyOf reads one SSH key of a user.
func (f *Forge) KeyOf(ctx context.Context, p Principal, user tidelock.UserID, id tidelock.KeyID) (tidelock.Key, error) {
	if err := f.Allow(ctx, p, ReadUsers, OnForge); err != nil {
		return tidelock.Key{}, err
	}
	return f.keyOf(ctx, user, id)
}

func (f *Forge) keyOf(ctx context.Context, user tidelock.UserID, id tidelock.KeyID) (tidelock.Key, error) {
	key, err := f.store.Key(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && key.User != user) {
		return tidelock.Key{}, errNoKey()
	}
	return key, err
}

// DeleteKey takes an SSH key from a person: themselves, or an administrator
// from anybody. Its connections are cut within seconds.
func (f *Forge) DeleteKey(ctx context.Context, p Principal, user tidelock.UserID, id tidelock.KeyID) error {
	action := Administer
	if p.User != nil && p.User.ID == user {
		action = ManageOwnKeys
	}
	if err := f.Allow(ctx, p, action, OnForge); err != nil {
		return err
	}
	key, err := f.keyOf(ctx, user, id)
	if err != nil {
		return err
	}
	owner, err := f.store.User(ctx, user)
	if err != nil {
		return err
	}
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return change{act: "SSH key deleted", subject: keySubject(key), detail: keyDetail(key, owner)}, f.store.DeleteKey(ctx, id)
	})
	if err != nil {
		return err
	}
	by, _ := p.ids()
	f.log.InfoContext(ctx, "SSH key deleted", "key", id, "user", user, "by", by)
	return nil
}

// AnyKey reads any SSH key, a deploy key too, for those who oversee the forge.
func (f *Forge) AnyKey(ctx context.Context, p Principal, id tidelock.KeyID) (tidelock.Key, error) {
	if err := f.Allow(ctx, p, Oversee, OnForge); err != nil {
		return tidelock.Key{}, err
	}
	key, err := f.store.Key(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Key{}, errNoKey()
	}
	return key, err
}

// FindKey finds any SSH key by its fingerprint, for those who oversee the
// forge.
func (f *Forge) FindKey(ctx context.Context, p Principal, fingerprint string) (tidelock.Key, error) {
	if err := f.Allow(ctx, p, Oversee, OnForge); err != nil {
		return tidelock.Key{}, err
	}
	key, err := f.store.KeyByFingerprint(ctx, fingerprint)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Key{}, errNoKey()
	}
	return key, err
}

func keySubject(k tidelock.Key) string { return fmt.Sprintf("SSH key %d %q", k.ID, k.Title) }

func keyDetail(k tidelock.Key, owner tidelock.User) string {
	return fmt.Sprintf("of %s, fingerprint %s", owner.Username, k.Fingerprint)
}
