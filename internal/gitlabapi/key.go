package gitlabapi

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (a *API) keyRoutes() []route {
	return []route{
		{get, "/user/keys", a.listOwnKeys},
		{post, "/user/keys", a.addKey},
		{get, "/user/keys/:key_id", a.showOwnKey},
		{del, "/user/keys/:key_id", a.deleteKey},

		{get, "/users/:user_id/keys", a.listUserKeys},
		{post, "/users/:user_id/keys", a.addKey},
		{get, "/users/:user_id/keys/:key_id", a.showUserKey},
		{del, "/users/:user_id/keys/:key_id", a.deleteKey},

		{get, "/keys", a.findKey},
		{get, "/keys/:key_id", a.showAnyKey},

		{get, "/deploy_keys", a.listAllDeployKeys},
		{get, "/projects/:id/deploy_keys", a.listDeployKeys(onProject)},
		{post, "/projects/:id/deploy_keys", a.addDeployKey(onProject)},
		{get, "/projects/:id/deploy_keys/:key_id", a.showDeployKey(onProject)},
		{put, "/projects/:id/deploy_keys/:key_id", a.editDeployKey(onProject)},
		{del, "/projects/:id/deploy_keys/:key_id", a.removeDeployKey(onProject)},
		{post, "/projects/:id/deploy_keys/:key_id/enable", a.enableDeployKey(onProject)},

		// GitLab has deploy keys of projects only.
		{get, "/groups/:id/deploy_keys", a.listDeployKeys(onGroup)},
		{post, "/groups/:id/deploy_keys", a.addDeployKey(onGroup)},
		{get, "/groups/:id/deploy_keys/:key_id", a.showDeployKey(onGroup)},
		{put, "/groups/:id/deploy_keys/:key_id", a.editDeployKey(onGroup)},
		{del, "/groups/:id/deploy_keys/:key_id", a.removeDeployKey(onGroup)},
		{post, "/groups/:id/deploy_keys/:key_id/enable", a.enableDeployKey(onGroup)},
	}
}

var (
	readDeployKeys   = acts{forge.ReadDeployKeys, forge.ReadGroupDeployKeys}
	manageDeployKeys = acts{forge.ManageDeployKeys, forge.ManageGroupDeployKeys}
)

// A keyShape is the SSH key of a person.
type keyShape struct {
	ID         tidelock.KeyID `json:"id"`
	Title      string         `json:"title"`
	Key        string         `json:"key"`
	UsageType  string         `json:"usage_type"`
	CreatedAt  stamp          `json:"created_at"`
	ExpiresAt  stamp          `json:"expires_at"`
	LastUsedAt stamp          `json:"last_used_at"`
}

func newKeyShape(k tidelock.Key) keyShape {
	return keyShape{
		ID: k.ID, Title: k.Title, Key: k.Public, UsageType: "auth",
		CreatedAt: stamp(k.CreatedAt), ExpiresAt: stamp(k.ExpiresAt), LastUsedAt: stamp(k.LastUsed),
	}
}

// An ownedKeyShape is any SSH key, with whose it is; a deploy key is nobody's.
type ownedKeyShape struct {
	keyShape
	User any `json:"user"`
}

// A deployKeyShape is a deploy key as a project or group has it.
type deployKeyShape struct {
	anyDeployKeyShape
	CanPush bool `json:"can_push"`
}

type anyDeployKeyShape struct {
	ID                tidelock.KeyID `json:"id"`
	Title             string         `json:"title"`
	Key               string         `json:"key"`
	Fingerprint       string         `json:"fingerprint"`
	FingerprintSHA256 string         `json:"fingerprint_sha256"`
	CreatedAt         stamp          `json:"created_at"`
	ExpiresAt         stamp          `json:"expires_at"`
	LastUsedAt        stamp          `json:"last_used_at"`
}

func newAnyDeployKeyShape(k tidelock.Key) anyDeployKeyShape {
	return anyDeployKeyShape{
		ID: k.ID, Title: k.Title, Key: k.Public, Fingerprint: oldFingerprint(k.Public), FingerprintSHA256: k.Fingerprint,
		CreatedAt: stamp(k.CreatedAt), ExpiresAt: stamp(k.ExpiresAt), LastUsedAt: stamp(k.LastUsed),
	}
}

func newDeployKeyShape(k tidelock.DeployKey) deployKeyShape {
	return deployKeyShape{newAnyDeployKeyShape(k.Key), k.CanPush}
}

// oldFingerprint is the MD5 of a key, as OpenSSH wrote it until 6.8 and
// GitLab still does. It identifies nothing here.
func oldFingerprint(public string) string {
	fields := strings.Fields(public)
	if len(fields) < 2 {
		return ""
	}
	blob, err := base64.StdEncoding.DecodeString(fields[1])
	if err != nil {
		return ""
	}
	sum := md5.Sum(blob)
	pairs := make([]string, len(sum))
	for i := range sum {
		pairs[i] = hex.EncodeToString(sum[i : i+1])
	}
	return strings.Join(pairs, ":")
}

// newKey reads what SSH keys are made from.
func (p *params) newKey() forge.NewKey {
	p.need("title", "key")
	return forge.NewKey{Title: p.text("title"), Key: p.text("key"), ExpiresAt: p.when("expires_at")}
}

func (a *API) listOwnKeys(w http.ResponseWriter, r *request) error {
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	keys, total, err := a.forge.OwnKeys(r.ctx(), r.by, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(keys, newKeyShape), total)
}

func (a *API) showOwnKey(w http.ResponseWriter, r *request) error {
	n, err := id[tidelock.KeyID](r, "key_id")
	if err != nil {
		return err
	}
	key, err := a.forge.OwnKey(r.ctx(), r.by, n)
	if err != nil {
		return err
	}
	return ok(w, newKeyShape(key))
}

// keyOwner is whose keys a route changes: those of the user in its path, for
// administrators, or the caller's own.
func (a *API) keyOwner(r *request) (tidelock.UserID, error) {
	if _, named := r.args["user_id"]; named {
		if err := a.forge.Allow(r.ctx(), r.by, forge.Administer, forge.OnForge); err != nil {
			return 0, err
		}
		return id[tidelock.UserID](r, "user_id")
	}
	caller, err := r.user()
	if err != nil {
		return 0, err
	}
	return caller.ID, a.forge.Allow(r.ctx(), r.by, forge.ManageOwnKeys, forge.OnForge)
}

func (a *API) addKey(w http.ResponseWriter, r *request) error {
	user, err := a.keyOwner(r)
	if err != nil {
		return err
	}
	n := r.newKey()
	if err := r.err(); err != nil {
		return err
	}
	key, err := a.forge.AddKey(r.ctx(), r.by, user, n)
	if err != nil {
		return missing("User", err)
	}
	return created(w, newKeyShape(key))
}

func (a *API) deleteKey(w http.ResponseWriter, r *request) error {
	user, err := a.keyOwner(r)
	if err != nil {
		return err
	}
	n, err := id[tidelock.KeyID](r, "key_id")
	if err != nil {
		return err
	}
	if err := a.forge.DeleteKey(r.ctx(), r.by, user, n); err != nil {
		return err
	}
	return gone(w)
}

func (a *API) listUserKeys(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.ReadUsers, forge.OnForge); err != nil {
		return err
	}
	user, err := id[tidelock.UserID](r, "user_id")
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	keys, total, err := a.forge.KeysOf(r.ctx(), r.by, user, page)
	if err != nil {
		return missing("User", err)
	}
	return writePage(a, w, r, page, each(keys, newKeyShape), total)
}

func (a *API) showUserKey(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.ReadUsers, forge.OnForge); err != nil {
		return err
	}
	user, err := id[tidelock.UserID](r, "user_id")
	if err != nil {
		return err
	}
	n, err := id[tidelock.KeyID](r, "key_id")
	if err != nil {
		return err
	}
	key, err := a.forge.KeyOf(r.ctx(), r.by, user, n)
	if err != nil {
		return err
	}
	return ok(w, newKeyShape(key))
}

func (a *API) showAnyKey(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.Oversee, forge.OnForge); err != nil {
		return err
	}
	n, err := id[tidelock.KeyID](r, "key_id")
	if err != nil {
		return err
	}
	key, err := a.forge.AnyKey(r.ctx(), r.by, n)
	if err != nil {
		return err
	}
	return a.writeOwned(w, r, key)
}

// findKey finds a key by its fingerprint. A query has no "+", which base64
// does: clients that forget to escape it send spaces.
func (a *API) findKey(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.Oversee, forge.OnForge); err != nil {
		return err
	}
	r.need("fingerprint")
	fingerprint := strings.ReplaceAll(r.text("fingerprint"), " ", "+")
	if fingerprint != "" && !strings.HasPrefix(fingerprint, "SHA256:") {
		r.note("fingerprint", "is invalid: it must begin with SHA256:")
	}
	if err := r.err(); err != nil {
		return err
	}
	key, err := a.forge.FindKey(r.ctx(), r.by, fingerprint)
	if err != nil {
		return err
	}
	return a.writeOwned(w, r, key)
}

func (a *API) writeOwned(w http.ResponseWriter, r *request, key tidelock.Key) error {
	shape := ownedKeyShape{keyShape: newKeyShape(key)}
	if key.User != 0 {
		user, err := a.forge.UserByID(r.ctx(), key.User)
		if err != nil {
			return err
		}
		shape.User = a.userFor(r, user)
	}
	return ok(w, shape)
}

// A sharedDeployKeyShape is a deploy key with where it is enabled.
type sharedDeployKeyShape struct {
	anyDeployKeyShape
	Writes      []projectRef `json:"projects_with_write_access"`
	Reads       []projectRef `json:"projects_with_readonly_access"`
	GroupWrites []groupRef   `json:"groups_with_write_access"`    // ours
	GroupReads  []groupRef   `json:"groups_with_readonly_access"` // ours
}

type projectRef struct {
	ID                tidelock.ProjectID `json:"id"`
	Description       string             `json:"description"`
	Name              string             `json:"name"`
	NameWithNamespace string             `json:"name_with_namespace"`
	Path              string             `json:"path"`
	PathWithNamespace string             `json:"path_with_namespace"`
	CreatedAt         stamp              `json:"created_at"`
}

type groupRef struct {
	ID       tidelock.NamespaceID `json:"id"`
	Name     string               `json:"name"`
	FullPath string               `json:"full_path"`
}

func (a *API) listAllDeployKeys(w http.ResponseWriter, r *request) error {
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	keys, total, err := a.forge.DeployKeys(r.ctx(), r.by, page)
	if err != nil {
		return err
	}
	shapes := make([]sharedDeployKeyShape, len(keys))
	for i, k := range keys {
		if shapes[i], err = a.sharedDeployKeyShape(r, k); err != nil {
			return err
		}
	}
	return writePage(a, w, r, page, shapes, total)
}

func (a *API) sharedDeployKeyShape(r *request, k forge.AnyDeployKey) (sharedDeployKeyShape, error) {
	s := sharedDeployKeyShape{
		anyDeployKeyShape: newAnyDeployKeyShape(k.Key),
		Writes:            []projectRef{}, Reads: []projectRef{}, GroupWrites: []groupRef{}, GroupReads: []groupRef{},
	}
	for _, at := range k.Enabled {
		projects, groups := &s.Reads, &s.GroupReads
		if at.CanPush {
			projects, groups = &s.Writes, &s.GroupWrites
		}
		if at.Project != 0 {
			p, err := a.forge.ProjectByID(r.ctx(), at.Project)
			if tidelock.KindOf(err) == tidelock.NotFound {
				continue // deleted meanwhile
			}
			if err != nil {
				return s, err
			}
			*projects = append(*projects, projectRef{
				ID: p.ID, Description: p.Description, Name: p.Name, NameWithNamespace: p.FullName,
				Path: p.Path, PathWithNamespace: p.FullPath, CreatedAt: stamp(p.CreatedAt),
			})
			continue
		}
		g, err := a.forge.NamespaceByID(r.ctx(), at.Namespace)
		if tidelock.KindOf(err) == tidelock.NotFound {
			continue
		}
		if err != nil {
			return s, err
		}
		*groups = append(*groups, groupRef{ID: g.ID, Name: g.Name, FullPath: g.FullPath})
	}
	return s, nil
}

func (a *API) listDeployKeys(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readDeployKeys)
		if err != nil {
			return err
		}
		page := r.page()
		if err := r.err(); err != nil {
			return err
		}
		keys, total, err := a.forge.DeployKeysOf(r.ctx(), r.by, target, page)
		if err != nil {
			return err
		}
		return writePage(a, w, r, page, each(keys, newDeployKeyShape), total)
	}
}

func (a *API) addDeployKey(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageDeployKeys)
		if err != nil {
			return err
		}
		n := forge.NewDeployKey{NewKey: r.newKey(), CanPush: r.flag("can_push")}
		if err := r.err(); err != nil {
			return err
		}
		key, err := a.forge.AddDeployKey(r.ctx(), r.by, target, n)
		if err != nil {
			return err
		}
		return created(w, newDeployKeyShape(key))
	}
}

// deployKey is the deploy key that a route names, and where, for a caller who
// may do what is needed there.
func (a *API) deployKey(r *request, in place, needed acts) (forge.Target, tidelock.KeyID, error) {
	target, err := in(a, r, needed)
	if err != nil {
		return forge.Target{}, 0, err
	}
	n, err := id[tidelock.KeyID](r, "key_id")
	return target, n, err
}

func (a *API) showDeployKey(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, n, err := a.deployKey(r, in, readDeployKeys)
		if err != nil {
			return err
		}
		key, err := a.forge.DeployKeyOf(r.ctx(), r.by, target, n)
		if err != nil {
			return err
		}
		return ok(w, newDeployKeyShape(key))
	}
}

func (a *API) editDeployKey(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, n, err := a.deployKey(r, in, manageDeployKeys)
		if err != nil {
			return err
		}
		r.needOneOf("title", "can_push")
		edit := forge.DeployKeyEdit{Title: given(&r.params, "title", r.text), CanPush: given(&r.params, "can_push", r.flag)}
		if err := r.err(); err != nil {
			return err
		}
		key, err := a.forge.EditDeployKey(r.ctx(), r.by, target, n, edit)
		if err != nil {
			return err
		}
		return ok(w, newDeployKeyShape(key))
	}
}

func (a *API) removeDeployKey(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, n, err := a.deployKey(r, in, manageDeployKeys)
		if err != nil {
			return err
		}
		if err := a.forge.RemoveDeployKey(r.ctx(), r.by, target, n); err != nil {
			return err
		}
		return gone(w)
	}
}

func (a *API) enableDeployKey(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, n, err := a.deployKey(r, in, manageDeployKeys)
		if err != nil {
			return err
		}
		key, err := a.forge.EnableDeployKey(r.ctx(), r.by, target, n)
		if err != nil {
			return err
		}
		return created(w, newDeployKeyShape(key))
	}
}
