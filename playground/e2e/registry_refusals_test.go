package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// pushes are commands that push something from the shell's folder, each with
// another program; the shell must have made it with prepare.
func pushes(image, tag string) map[string][]string {
	return map[string][]string{
		"flux": {"flux", "push", "artifact", "oci://" + image + "/deploy:" + tag, "--path", "large.layer.content",
			"--source", "https://example.org", "--revision", "main@sha1:" + strings.Repeat("a", 40)},
		"crane":  {"crane", "push", "large", image + ":" + tag},
		"oras":   {"oras", "push", image + ":" + tag, "large.layer.content"},
		"helm":   {"helm", "push", "shop-1.0.0.tgz", "oci://" + image + "/charts"},
		"skopeo": {"skopeo", "copy", "oci:large:test", "docker://" + image + ":" + tag},
	}
}

// prepare makes what pushes push.
func (s *shell) prepare(size int) {
	s.t.Helper()
	s.layout("large", size)
	s.write("shop/Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\n")
	s.write("shop/noise", s.read("large.layer.content")[:min(size, 900_000)]) // helm takes no chart that is larger
	s.must("helm", "package", "shop")
}

// TestRegistryRefusals looks whether every program tells why a push is refused,
// and that nothing of it is there afterwards.
func TestRegistryRefusals(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	member := func(path string, level int) string {
		p := r.Project(path, "private")
		var user []struct{ ID int64 }
		r.Call(http.MethodGet, "users?username=dev", nil, &user)
		if level > 0 {
			r.Call(http.MethodPost, fmt.Sprintf("projects/%d/members", p.ID), map[string]any{"user_id": user[0].ID, "access_level": level}, nil)
		}
		return r.host + "/" + path
	}
	refused := func(t *testing.T, image, tag, want string) {
		s := r.shell(t).dockerConfig(r.developer)
		s.prepare(8 << 20)
		for name, args := range pushes(image, tag) {
			t.Run(name, func(t *testing.T) { s.in(t).refused(want, args...) })
		}
		root := r.shell(t).dockerConfig(login{"", "root", r.Token})
		for _, left := range []string{image, image + "/deploy", image + "/charts/shop"} {
			stdout, stderr, err := root.run("crane", "ls", left)
			if err == nil && stdout != "" || err != nil && !strings.Contains(stderr, "NAME_UNKNOWN") {
				t.Errorf("tags of %s after the refusals: %s %s", left, stdout, stderr)
			}
		}
	}

	t.Run("quota", func(t *testing.T) {
		image := member("team/small", 30)
		r.Call(http.MethodPut, "projects/team%2Fsmall/registry/quota", map[string]any{"bytes": 64 << 10}, nil)
		refused(t, image, "v1", "ask an administrator for")
	})
	t.Run("protected tag", func(t *testing.T) {
		image := member("team/guarded", 30)
		r.Call(http.MethodPost, "projects/team%2Fguarded/registry/protection/tag/rules", map[string]any{
			"tag_name_pattern": `^(stable|\d+\.\d+\.\d+)$`, "minimum_access_level_for_push": "maintainer", "minimum_access_level_for_delete": "maintainer",
		}, nil)
		refused(t, image, "stable", "to push it needs the role maintainer")
	})
	t.Run("no member", func(t *testing.T) {
		refused(t, member("team/hidden", 0), "v1", "there is no such image, or you may not see it")
	})
	t.Run("no project", func(t *testing.T) {
		refused(t, r.host+"/team/none", "v1", "there is no such image, or you may not see it")
	})

	t.Run("mount", func(t *testing.T) {
		s := r.shell(t).dockerConfig(login{"", "root", r.Token})
		hidden, seen := member("team/theirs", 0), member("team/shared", 20)
		s.layout("image", 4096)
		for _, image := range []string{hidden, seen} {
			s.must("crane", "push", "image", image+":v1")
		}
		s = r.shell(t).dockerConfig(r.developer)
		s.refused("there is no such image, or you may not see it", "crane", "copy", hidden+":v1", r.image+"/copied:v1")
		// A digest alone opens nothing: the blob has to be uploaded.
		digest := r.blob(t, s, seen)
		answer := curl(t, r.Forge, r.URL+"/v2/team/web-shop/copied/blobs/uploads/?mount="+digest+"&from=team/theirs",
			"--request", "POST", "--user", "dev:"+r.developer.password)
		wantStatus(t, "mount of what is hidden", answer, 202)
		s.says("mounted blob", "crane", "copy", seen+":v1", r.image+"/copied:v1")
		s.must("oras", "cp", seen+":v1", r.image+"/copied:oras")
		s.says("PASS", "crane", "validate", "--remote", r.image+"/copied:v1")
	})
	t.Run("list of everything", func(t *testing.T) {
		s := r.shell(t).dockerConfig(r.developer)
		s.refused("there is no list of all images", "crane", "catalog", r.host)
		s.refused("there is no list of all images", "oras", "repo", "ls", r.host)
	})
}

// blob is the digest of an image's only layer.
func (r *imageHost) blob(t *testing.T, s *shell, image string) string {
	t.Helper()
	_, after, ok := strings.Cut(s.must("crane", "manifest", image+":v1"), `"layers":[`)
	if !ok {
		t.Fatal("the manifest has no layers")
	}
	return "sha256:" + after[strings.Index(after, "sha256:")+len("sha256:"):][:64]
}
