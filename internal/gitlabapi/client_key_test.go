package gitlabapi_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go"
	"golang.org/x/crypto/ssh"

	"tidelock.dev"
)

// newPublicKey makes a line of authorized_keys.
func newPublicKey(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	key, err := ssh.NewPublicKey(public)
	must(t, err)
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func clientKeys(t *testing.T, w *world, c *gitlab.Client) {
	t.Run("of people", func(t *testing.T) { clientUserKeys(t, c) })
	t.Run("for deploying", func(t *testing.T) { clientDeployKeys(t, w, c) })
	t.Run("of groups", func(t *testing.T) { clientGroupDeployKeys(t, w, c) })
}

func clientUserKeys(t *testing.T, c *gitlab.Client) {
	line := newPublicKey(t)
	made, _, err := c.Users.AddSSHKey(&gitlab.AddSSHKeyOptions{
		Title: gitlab.Ptr("laptop"), Key: gitlab.Ptr(line + " ada@laptop\n"), ExpiresAt: gitlab.Ptr(gitlab.ISOTime(time.Now().AddDate(1, 0, 0))),
	})
	must(t, err)
	if made.ID == 0 || made.Title != "laptop" || made.Key != line+" ada@laptop" || made.CreatedAt == nil || made.ExpiresAt == nil {
		t.Errorf("the key is %+v", made)
	}
	listed, _, err := c.Users.ListSSHKeys(nil)
	must(t, err)
	one, _, err := c.Users.GetSSHKey(made.ID)
	must(t, err)
	if len(listed) != 1 || listed[0].ID != made.ID || one.Key != made.Key {
		t.Errorf("listed %+v, read %+v", listed, one)
	}
	_, resp, err := c.Users.AddSSHKey(&gitlab.AddSSHKeyOptions{Title: gitlab.Ptr("again"), Key: gitlab.Ptr(line)})
	if err == nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(err.Error(), "fingerprint_sha256: [has already been taken]") {
		t.Errorf("the same key again: %v", err)
	}
	ada, _, err := c.Users.CreateUser(&gitlab.CreateUserOptions{
		Username: gitlab.Ptr("keyed"), Name: gitlab.Ptr("Keyed"), Email: gitlab.Ptr("keyed@example.com"), ForceRandomPassword: gitlab.Ptr(true)})
	must(t, err)
	hers, _, err := c.Users.AddSSHKeyForUser(ada.ID, &gitlab.AddSSHKeyOptions{Title: gitlab.Ptr("hers"), Key: gitlab.Ptr(newPublicKey(t))})
	must(t, err)
	listed, _, err = c.Users.ListSSHKeysForUser(ada.ID, nil)
	must(t, err)
	if len(listed) != 1 || listed[0].ID != hers.ID {
		t.Errorf("her keys are %+v", listed)
	}
	if got, _, err := c.Users.GetSSHKeyForUser(ada.ID, hers.ID); err != nil || got.ID != hers.ID {
		t.Errorf("her key is %+v, %v", got, err)
	}
	if _, resp, err := c.Users.GetSSHKey(hers.ID); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("her key as mine: %v", err)
	}
	owned, _, err := c.Keys.GetKeyWithUser(hers.ID)
	must(t, err)
	parsed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	must(t, err)
	found, _, err := c.Keys.GetKeyByFingerprint(&gitlab.GetKeyByFingerprintOptions{Fingerprint: ssh.FingerprintSHA256(parsed)})
	must(t, err)
	if owned.User.ID != ada.ID || found.ID != made.ID || found.User.Username != "root" {
		t.Errorf("with users: %+v, %+v", owned, found)
	}
	_, err = c.Users.DeleteSSHKeyForUser(ada.ID, hers.ID)
	must(t, err)
	_, err = c.Users.DeleteSSHKey(made.ID)
	must(t, err)
	if _, resp, err := c.Users.GetSSHKey(made.ID); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a deleted key: %v", err)
	}
}

func clientDeployKeys(t *testing.T, w *world, c *gitlab.Client) {
	group := w.group("keys", tidelock.Private)
	w.project(group, "site", tidelock.Private)
	w.project(group, "shop", tidelock.Private)
	line := newPublicKey(t)
	made, resp, err := c.DeployKeys.AddDeployKey("keys/site", &gitlab.AddDeployKeyOptions{Title: gitlab.Ptr("flux"), Key: gitlab.Ptr(line + "\n"), CanPush: gitlab.Ptr(true)})
	must(t, err)
	if resp.StatusCode != http.StatusCreated || made.Title != "flux" || made.Key != line || !made.CanPush || made.CreatedAt == nil || made.ExpiresAt != nil ||
		!strings.HasPrefix(made.FingerprintSHA256, "SHA256:") || len(made.Fingerprint) != 47 {
		t.Errorf("the deploy key is %+v", made)
	}
	other, _, err := c.DeployKeys.AddDeployKey("keys/site", &gitlab.AddDeployKeyOptions{Title: gitlab.Ptr("flux"), Key: gitlab.Ptr(newPublicKey(t))})
	must(t, err) // titles may repeat
	again, _, err := c.DeployKeys.AddDeployKey("keys/site", &gitlab.AddDeployKeyOptions{Title: gitlab.Ptr("other"), Key: gitlab.Ptr(line)})
	must(t, err)
	if again.ID != made.ID || again.Title != "flux" || !again.CanPush {
		t.Errorf("the same key again is %+v", again)
	}
	shop, _, err := c.DeployKeys.AddDeployKey("keys/shop", &gitlab.AddDeployKeyOptions{Title: gitlab.Ptr("in the shop"), Key: gitlab.Ptr(line)})
	must(t, err)
	if shop.ID != made.ID || shop.Title != "in the shop" || shop.CanPush {
		t.Errorf("the same key in another project is %+v", shop)
	}
	enabled, _, err := c.DeployKeys.EnableDeployKey("keys/shop", other.ID)
	must(t, err)
	if enabled.ID != other.ID || enabled.CanPush {
		t.Errorf("the enabled key is %+v", enabled)
	}
	changed, _, err := c.DeployKeys.UpdateDeployKey("keys/shop", other.ID, &gitlab.UpdateDeployKeyOptions{Title: gitlab.Ptr("pusher"), CanPush: gitlab.Ptr(true)})
	must(t, err)
	one, _, err := c.DeployKeys.GetDeployKey("keys/site", other.ID)
	must(t, err)
	if changed.Title != "pusher" || !changed.CanPush || one.Title != "flux" || one.CanPush {
		t.Errorf("changed in the shop to %+v, in the site it is %+v", changed, one)
	}
	listed, _, err := c.DeployKeys.ListProjectDeployKeys("keys/site", nil)
	must(t, err)
	if len(listed) != 2 {
		t.Errorf("the site has the keys %+v", listed)
	}
	all, _, err := c.DeployKeys.ListAllDeployKeys(nil)
	must(t, err)
	if len(all) != 2 || len(all[0].ProjectsWithWriteAccess) != 1 || all[0].ProjectsWithWriteAccess[0].PathWithNamespace != "keys/site" || len(all[0].ProjectsWithReadonlyAccess) != 1 {
		t.Errorf("all deploy keys are %+v", all)
	}
	_, resp, err = c.Users.AddSSHKey(&gitlab.AddSSHKeyOptions{Title: gitlab.Ptr("mine"), Key: gitlab.Ptr(line)})
	if err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a deploy key as a person's: %v", err)
	}

	// A protected branch may let a deploy key push that may push at all.
	protect := func(key int64) error {
		_, _, err := c.ProtectedBranches.ProtectRepositoryBranches("keys/site", &gitlab.ProtectRepositoryBranchesOptions{
			Name: gitlab.Ptr(fmt.Sprint("release-", key)), AllowedToPush: &[]*gitlab.BranchPermissionOptions{{DeployKeyID: &key}}})
		return err
	}
	must(t, protect(made.ID))
	if err := protect(other.ID); err == nil {
		t.Error("a key that may not push can be named by a protected branch")
	}

	for _, path := range []string{"keys/site", "keys/shop"} {
		_, err = c.DeployKeys.DeleteDeployKey(path, made.ID)
		must(t, err)
	}
	if _, resp, err := c.Keys.GetKeyWithUser(made.ID); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a key that is enabled nowhere: %v", err)
	}
}

func clientGroupDeployKeys(t *testing.T, w *world, c *gitlab.Client) {
	w.project(w.group("keyring", tidelock.Private), "site", tidelock.Private)
	call := func(method, path string, body any) *gitlab.ProjectDeployKey {
		t.Helper()
		request, err := c.NewRequest(method, "groups/keyring/deploy_keys"+path, body, nil)
		must(t, err)
		var key gitlab.ProjectDeployKey
		_, err = c.Do(request, &key)
		must(t, err)
		return &key
	}
	made := call("POST", "", &gitlab.AddDeployKeyOptions{Title: gitlab.Ptr("all"), Key: gitlab.Ptr(newPublicKey(t))})
	one := fmt.Sprintf("/%d", made.ID)
	if got := call("GET", one, nil); got.Title != "all" || got.CanPush {
		t.Errorf("the key is %+v", got)
	}
	if got := call("PUT", one, &gitlab.UpdateDeployKeyOptions{CanPush: gitlab.Ptr(true)}); !got.CanPush || got.Title != "all" {
		t.Errorf("the changed key is %+v", got)
	}
	if got := call("POST", one+"/enable", nil); got.ID != made.ID || !got.CanPush {
		t.Errorf("enabled again it is %+v", got)
	}
	below, _, err := c.DeployKeys.AddDeployKey("keyring/site", &gitlab.AddDeployKeyOptions{Title: gitlab.Ptr("below"), Key: gitlab.Ptr(newPublicKey(t))})
	must(t, err)
	if got := call("POST", fmt.Sprintf("/%d/enable", below.ID), nil); got.ID != below.ID || got.CanPush {
		t.Errorf("a project's key enabled in the group is %+v", got)
	}
	request, err := c.NewRequest("DELETE", fmt.Sprintf("groups/keyring/deploy_keys/%d", below.ID), nil, nil)
	must(t, err)
	_, err = c.Do(request, nil)
	must(t, err)
	request, err = c.NewRequest("GET", "groups/keyring/deploy_keys", nil, nil)
	must(t, err)
	var keys []*gitlab.ProjectDeployKey
	_, err = c.Do(request, &keys)
	must(t, err)
	if len(keys) != 1 || keys[0].ID != made.ID {
		t.Errorf("the group has the keys %+v", keys)
	}
	request, err = c.NewRequest("DELETE", "groups/keyring/deploy_keys"+one, nil, nil)
	must(t, err)
	_, err = c.Do(request, nil)
	must(t, err)
}
