package gitlabapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
)

// clientRegistry calls GitLab's routes of the registry with its own client, and
// ours as they are documented.
func clientRegistry(t *testing.T, w *world, c *gitlab.Client) {
	group, _, err := c.Groups.CreateGroup(&gitlab.CreateGroupOptions{Name: gitlab.Ptr("Wares"), Path: gitlab.Ptr("Wares")})
	must(t, err)
	made, _, err := c.Projects.CreateProject(&gitlab.CreateProjectOptions{Name: gitlab.Ptr("Shop"), Path: gitlab.Ptr("Shop"), NamespaceID: &group.ID})
	must(t, err)
	project, err := w.forge.ProjectByID(t.Context(), tidelock.ProjectID(made.ID))
	must(t, err)
	if made.ContainerRegistryAccessLevel != gitlab.EnabledAccessControl ||
		made.ContainerRegistryImagePrefix != strings.TrimPrefix(w.url, "http://")+"/wares/shop" {
		t.Errorf("the project says of its registry: %v, %q", made.ContainerRegistryAccessLevel, made.ContainerRegistryImagePrefix)
	}
	empty, _, err := c.ContainerRegistry.ListProjectRegistryRepositories(made.ID, nil)
	must(t, err)
	if len(empty) != 0 {
		t.Errorf("a new project has images: %+v", empty)
	}
	const kind = "application/vnd.test"
	newest := w.attach(project, "app", "latest", kind, "one", nil)
	for i := range 3 {
		w.attach(project, "app", fmt.Sprintf("build-%d", i), kind, fmt.Sprint("build", i), nil)
	}
	release := w.attach(project, "app", "1.0.0", kind, "release", nil)
	w.attach(project, "", "main", kind, "own", nil)

	images, resp, err := c.ContainerRegistry.ListProjectRegistryRepositories(made.ID,
		&gitlab.ListProjectRegistryRepositoriesOptions{Tags: gitlab.Ptr(true), TagsCount: gitlab.Ptr(true)})
	must(t, err)
	if len(images) != 2 || resp.TotalItems != 2 {
		t.Fatalf("got %d images of %d, want 2", len(images), resp.TotalItems)
	}
	app := images[0]
	host := strings.TrimPrefix(w.url, "http://")
	if app.Name != "app" || app.Path != "wares/shop/app" || app.Location != host+"/wares/shop/app" || app.ProjectID != made.ID ||
		app.TagsCount != 5 || len(app.Tags) != 5 || app.CreatedAt == nil || images[1].Name != "" || images[1].Path != "wares/shop" {
		t.Errorf("the images are %+v", images)
	}
	inGroup, _, err := c.ContainerRegistry.ListGroupRegistryRepositories(group.ID, nil)
	must(t, err)
	one, _, err := c.ContainerRegistry.GetSingleRegistryRepository(app.ID, &gitlab.GetSingleRegistryRepositoryOptions{TagsCount: gitlab.Ptr(true)})
	must(t, err)
	if len(inGroup) != 2 || inGroup[0].ID != app.ID || one.Path != app.Path || one.TagsCount != 5 {
		t.Errorf("of the group: %+v, alone: %+v", inGroup, one)
	}
	tags, resp, err := c.ContainerRegistry.ListRegistryRepositoryTags(made.ID, app.ID, &gitlab.ListRegistryRepositoryTagsOptions{ListOptions: gitlab.ListOptions{PerPage: 2}})
	must(t, err)
	if len(tags) != 2 || resp.TotalItems != 5 || tags[0].Name != "1.0.0" || tags[0].Location != host+"/wares/shop/app:1.0.0" {
		t.Errorf("the tags are %+v of %d", tags, resp.TotalItems)
	}
	detail, _, err := c.ContainerRegistry.GetRegistryRepositoryTagDetail(made.ID, app.ID, "1.0.0")
	must(t, err)
	if detail.Digest != string(release.Digest) || detail.TotalSize != release.TotalSize() || detail.CreatedAt == nil ||
		"sha256:"+detail.Revision != string(release.Parts[0].Digest) || !strings.HasPrefix(detail.Revision, detail.ShortRevision) {
		t.Errorf("the tag is %+v, the artifact %+v", detail, release)
	}
	_, resp, err = c.ContainerRegistry.GetRegistryRepositoryTagDetail(made.ID, app.ID, "none")
	refused(t, "no such tag", resp, err, http.StatusNotFound)

	resp, err = c.ContainerRegistry.DeleteRegistryRepositoryTag(made.ID, app.ID, "1.0.0")
	refused(t, "an immutable tag", resp, err, http.StatusForbidden)
	resp, err = c.ContainerRegistry.DeleteRegistryRepository(made.ID, app.ID)
	refused(t, "an image with an immutable tag", resp, err, http.StatusForbidden)
	resp, err = c.ContainerRegistry.DeleteRegistryRepositoryTag(made.ID, app.ID, string(newest.Digest))
	refused(t, "a digest as a tag", resp, err, http.StatusNotFound)
	_, err = c.ContainerRegistry.DeleteRegistryRepositoryTag(made.ID, app.ID, "build-0")
	must(t, err)
	_, err = c.ContainerRegistry.DeleteRegistryRepositoryTags(made.ID, app.ID, &gitlab.DeleteRegistryRepositoryTagsOptions{
		NameRegexpDelete: gitlab.Ptr(".*"), KeepN: gitlab.Ptr(int64(1)),
	})
	must(t, err)
	tags, _, err = c.ContainerRegistry.ListRegistryRepositoryTags(made.ID, app.ID, nil)
	must(t, err)
	if len(tags) != 3 || tags[0].Name != "1.0.0" || tags[1].Name != "build-2" || tags[2].Name != "latest" {
		t.Errorf("after the removal of many: %+v, want the immutable one, the newest and latest", tags)
	}
	_, err = c.ContainerRegistry.DeleteRegistryRepositoryTags(made.ID, app.ID, &gitlab.DeleteRegistryRepositoryTagsOptions{NameRegexpDelete: gitlab.Ptr("(")})
	if err == nil {
		t.Error("a broken pattern was taken")
	}

	t.Run("rules", func(t *testing.T) { clientTagRules(t, w, made.ID) })
	t.Run("retention", func(t *testing.T) { clientRetention(t, w, c, made.ID) })

	_, err = c.ContainerRegistry.DeleteRegistryRepository(made.ID, images[1].ID)
	must(t, err)
	_, resp, err = c.ContainerRegistry.GetSingleRegistryRepository(images[1].ID, nil)
	refused(t, "an image that is gone", resp, err, http.StatusNotFound)
}

// ask calls a route that GitLab's client does not know.
func (w *world) ask(method, path, body string, status int, into any) {
	w.t.Helper()
	got := w.call(method, path, body, as(w.token))
	if got.status != status {
		w.t.Fatalf("%s %s: got %d %s, want %d", method, path, got.status, got.body, status)
	}
	if into != nil {
		must(w.t, json.Unmarshal([]byte(got.body), into))
	}
}

func clientTagRules(t *testing.T, w *world, project int64) {
	rules := fmt.Sprintf("/projects/%d/registry/protection/tag/rules", project)
	type rule struct {
		ID        int64   `json:"id"`
		Pattern   string  `json:"tag_name_pattern"`
		Push      *string `json:"minimum_access_level_for_push"`
		Delete    *string `json:"minimum_access_level_for_delete"`
		Immutable bool    `json:"immutable"`
	}
	var listed []rule
	w.ask("GET", rules, "", http.StatusOK, &listed)
	if len(listed) != 1 || listed[0].Pattern != tidelock.SemVerTags || !listed[0].Immutable || listed[0].Push != nil || listed[0].Delete != nil {
		t.Fatalf("the rules of a new project are %+v", listed)
	}
	var made rule
	w.ask("POST", rules, `{"tag_name_pattern":"^prod","minimum_access_level_for_push":"maintainer","minimum_access_level_for_delete":"owner"}`, http.StatusCreated, &made)
	if made.Immutable || made.Push == nil || *made.Push != "maintainer" || made.Delete == nil || *made.Delete != "owner" {
		t.Errorf("the rule is %+v", made)
	}
	one := fmt.Sprintf("%s/%d", rules, made.ID)
	w.ask("PATCH", one, `{"minimum_access_level_for_push":"owner"}`, http.StatusOK, &made)
	if made.Push == nil || *made.Push != "owner" || made.Pattern != "^prod" {
		t.Errorf("after a change the rule is %+v", made)
	}
	w.ask("POST", rules, `{"tag_name_pattern":"("}`, http.StatusBadRequest, nil)
	w.ask("POST", rules, `{"tag_name_pattern":"x","minimum_access_level_for_push":"guest"}`, http.StatusBadRequest, nil)
	w.ask("PATCH", fmt.Sprintf("%s/%d", rules, listed[0].ID), `{"tag_name_pattern":"x"}`, http.StatusBadRequest, nil)

	// The immutable ones are a setting of the project, too; rules by role stay.
	var shown struct {
		Immutable []string `json:"tag_immutability"`
	}
	self := fmt.Sprintf("/projects/%d", project)
	w.ask("GET", self, "", http.StatusOK, &shown)
	if !slices.Equal(shown.Immutable, []string{tidelock.SemVerTags}) {
		t.Errorf("at first immutable are %q", shown.Immutable)
	}
	w.ask("PUT", self, `{"tag_immutability":["^release-","^release-","^v"]}`, http.StatusOK, &shown)
	if !slices.Equal(shown.Immutable, []string{"^release-", "^v"}) {
		t.Errorf("then immutable are %q", shown.Immutable)
	}
	w.ask("PUT", self, `{"tag_immutability":["^v","("]}`, http.StatusBadRequest, nil)
	w.ask("PUT", self, `{"tag_immutability":[]}`, http.StatusOK, &shown)
	w.ask("GET", rules, "", http.StatusOK, &listed)
	if len(shown.Immutable) != 0 || len(listed) != 1 || listed[0].Immutable {
		t.Errorf("in the end immutable are %q, and the rules %+v", shown.Immutable, listed)
	}
	w.ask("PUT", self, `{"tag_immutability":["`+strings.ReplaceAll(tidelock.SemVerTags, `\`, `\\`)+`"]}`, http.StatusOK, &shown)

	w.ask("DELETE", one, "", http.StatusNoContent, nil)
	w.ask("DELETE", one, "", http.StatusNotFound, nil)
}

func clientRetention(t *testing.T, w *world, c *gitlab.Client, id int64) {
	edited, _, err := c.Projects.EditProject(id, &gitlab.EditProjectOptions{
		ContainerExpirationPolicyAttributes: &gitlab.ContainerExpirationPolicyAttributes{
			Enabled: gitlab.Ptr(true), Cadence: gitlab.Ptr("7d"), KeepN: gitlab.Ptr(int64(5)), OlderThan: gitlab.Ptr("14d"),
			NameRegexDelete: gitlab.Ptr("build-.*"), NameRegexKeep: gitlab.Ptr("build-1"),
		},
	})
	must(t, err)
	p := edited.ContainerExpirationPolicy
	if p == nil || !p.Enabled || p.Cadence != "7d" || p.KeepN != 5 || p.OlderThan != "14d" || p.NameRegexDelete != "build-.*" || p.NameRegexKeep != "build-1" || p.NextRunAt == nil {
		t.Errorf("the policy is %+v", p)
	}
	// As a form, too, and what is not given stays.
	got := w.call("PUT", fmt.Sprintf("/projects/%d?container_expiration_policy_attributes[keep_n]=0&container_expiration_policy_attributes[older_than]=", id), "", as(w.token))
	if got.status != http.StatusOK {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	shown, _, err := c.Projects.GetProject(id, &gitlab.GetProjectOptions{Statistics: gitlab.Ptr(true)})
	must(t, err)
	if p := shown.ContainerExpirationPolicy; p == nil || p.KeepN != 0 || p.OlderThan != "" || p.Cadence != "7d" {
		t.Errorf("the policy is %+v", p)
	}
	if shown.Statistics == nil || shown.Statistics.ContainerRegistrySize == 0 {
		t.Errorf("the statistics are %+v", shown.Statistics)
	}
	got = w.call("PUT", fmt.Sprintf("/projects/%d", id), `{"container_expiration_policy_attributes":{"cadence":"soon"}}`, as(w.token))
	if got.status != http.StatusBadRequest {
		t.Errorf("a broken cadence: got %d %s", got.status, got.body)
	}

	registry := fmt.Sprintf("/projects/%d/registry", id)
	type fate struct {
		Tag    string `json:"tag"`
		Remove bool   `json:"remove"`
		Reason string `json:"reason"`
	}
	for _, query := range []string{"?dry_run=true", ""} {
		var fates []fate
		w.ask("POST", registry+"/retention"+query, "", http.StatusOK, &fates)
		removed := map[string]bool{}
		for _, f := range fates {
			if f.Reason == "" {
				t.Errorf("no reason is given for %q", f.Tag)
			}
			removed[f.Tag] = f.Remove
		}
		if !removed["build-2"] || removed["latest"] || removed["1.0.0"] || removed["main"] {
			t.Errorf("retention%s: got %+v", query, fates)
		}
	}
	var usage struct {
		Used  int64  `json:"used_bytes"`
		Quota *int64 `json:"quota_bytes"`
	}
	w.ask("GET", registry+"/usage", "", http.StatusOK, &usage)
	if usage.Used != shown.Statistics.ContainerRegistrySize || usage.Quota != nil {
		t.Errorf("the usage is %+v", usage)
	}
	w.ask("PUT", registry+"/quota", `{"bytes":1000000}`, http.StatusOK, &usage)
	if usage.Quota == nil || *usage.Quota != 1000000 {
		t.Errorf("with a quota the usage is %+v", usage)
	}
	var collected struct {
		Artifacts []any `json:"artifacts"`
	}
	w.ask("POST", registry+"/collect?dry_run=true", "", http.StatusOK, &collected)
	w.ask("POST", "/registry/collect", "", http.StatusOK, &collected)
	if collected.Artifacts == nil {
		t.Error("the list of what was collected is null")
	}
}

// What is in the registry of projects that one may not see is not found, nor
// counted.
func TestImagesOfOthers(t *testing.T) {
	w := newWorld(t)
	c := w.client()
	group, _, err := c.Groups.CreateGroup(&gitlab.CreateGroupOptions{Name: gitlab.Ptr("Open"), Path: gitlab.Ptr("open"), Visibility: gitlab.Ptr(gitlab.PublicVisibility)})
	must(t, err)
	images := map[string]int64{}
	for _, v := range []gitlab.VisibilityValue{gitlab.PublicVisibility, gitlab.PrivateVisibility} {
		made, _, err := c.Projects.CreateProject(&gitlab.CreateProjectOptions{Name: gitlab.Ptr(string(v)), NamespaceID: &group.ID, Visibility: &v})
		must(t, err)
		project, err := w.forge.ProjectByID(t.Context(), tidelock.ProjectID(made.ID))
		must(t, err)
		images[string(v)] = int64(w.attach(project, "", "a", "application/vnd.test", string(v), nil).Image)
	}
	got := w.call("GET", fmt.Sprintf("/groups/%d/registry/repositories", group.ID), "")
	var listed []struct{ ID int64 }
	must(t, json.Unmarshal([]byte(got.body), &listed))
	if len(listed) != 1 || listed[0].ID != images["public"] || got.header.Get("X-Total") != "1" {
		t.Errorf("anonymous sees %s of %s", got.body, got.header.Get("X-Total"))
	}
	for visibility, status := range map[string]int{"public": http.StatusOK, "private": http.StatusNotFound} {
		if got := w.call("GET", fmt.Sprintf("/registry/repositories/%d", images[visibility]), ""); got.status != status {
			t.Errorf("anonymous reads a %s image: got %d %s, want %d", visibility, got.status, got.body, status)
		}
	}
}
