package gitlabapi_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func clientCode(t *testing.T, w *world, c *gitlab.Client) {
	group := w.group("writing", tidelock.Private)
	made, _, err := c.Projects.CreateProject(&gitlab.CreateProjectOptions{
		Name: gitlab.Ptr("Site"), NamespaceID: gitlab.Ptr(int64(group.ID)), InitializeWithReadme: gitlab.Ptr(true), DefaultBranch: gitlab.Ptr("trunk"),
	})
	must(t, err)
	if made.EmptyRepo || made.DefaultBranch != "trunk" {
		t.Errorf("CreateProject = %+v", made)
	}
	const path = "writing/site"
	readme, _, err := c.RepositoryFiles.GetRawFile(path, "README.md", nil)
	must(t, err)
	if string(readme) != "# Site\n" {
		t.Errorf("the first file holds %q", readme)
	}

	action := func(kind gitlab.FileActionValue, file, content string) *gitlab.CommitActionOptions {
		return &gitlab.CommitActionOptions{Action: gitlab.Ptr(kind), FilePath: gitlab.Ptr(file), Content: gitlab.Ptr(content)}
	}
	first, _, err := c.Commits.CreateCommit(path, &gitlab.CreateCommitOptions{
		Branch: gitlab.Ptr("trunk"), CommitMessage: gitlab.Ptr("Several\n\nbody"), AuthorName: gitlab.Ptr("Ada"), AuthorEmail: gitlab.Ptr("ada@example.com"),
		Actions: []*gitlab.CommitActionOptions{
			action(gitlab.FileCreate, "apps/web.yaml", "replicas: 1\n"),
			action(gitlab.FileCreate, "run.sh", "#!/bin/sh\n"),
			{Action: gitlab.Ptr(gitlab.FileCreate), FilePath: gitlab.Ptr("logo.bin"), Encoding: gitlab.Ptr("base64"), Content: gitlab.Ptr("AAEC\n/w==")},
			{Action: gitlab.Ptr(gitlab.FileChmod), FilePath: gitlab.Ptr("run.sh"), ExecuteFilemode: gitlab.Ptr(true)},
			{Action: gitlab.Ptr(gitlab.FileMove), FilePath: gitlab.Ptr("docs/README.md"), PreviousPath: gitlab.Ptr("README.md")},
		},
	})
	must(t, err)
	if first.Title != "Several" || first.AuthorName != "Ada" || first.CommitterName != "Administrator" || len(first.ParentIDs) != 1 ||
		first.Stats == nil || first.Stats.Total != first.Stats.Additions+first.Stats.Deletions || first.Stats.Additions != 2 {
		t.Errorf("CreateCommit = %+v, %+v", first, first.Stats)
	}
	logo, _, err := c.RepositoryFiles.GetRawFile(path, "logo.bin", nil)
	must(t, err)
	if !bytes.Equal(logo, []byte{0, 1, 2, 255}) {
		t.Errorf("logo.bin holds %v", logo)
	}
	script, _, err := c.RepositoryFiles.GetFileMetaData(path, "run.sh", &gitlab.GetFileMetaDataOptions{Ref: gitlab.Ptr("trunk")})
	must(t, err)
	if !script.ExecuteFilemode || script.LastCommitID != first.ID {
		t.Errorf("run.sh is %+v", script)
	}

	// A branch that begins elsewhere, made by its first commit.
	second, _, err := c.Commits.CreateCommit(path, &gitlab.CreateCommitOptions{
		Branch: gitlab.Ptr("feature/x"), StartBranch: gitlab.Ptr("trunk"), CommitMessage: gitlab.Ptr("On a branch"), Stats: gitlab.Ptr(false),
		Actions: []*gitlab.CommitActionOptions{{
			Action: gitlab.Ptr(gitlab.FileUpdate), FilePath: gitlab.Ptr("apps/web.yaml"), Content: gitlab.Ptr("replicas: 2\n"), LastCommitID: gitlab.Ptr(first.ID),
		}},
	})
	must(t, err)
	if second.ParentIDs[0] != first.ID || second.Stats != nil {
		t.Errorf("CreateCommit on a new branch = %+v", second)
	}

	info, _, err := c.RepositoryFiles.CreateFile(path, "a b/ü.txt", &gitlab.CreateFileOptions{
		Branch: gitlab.Ptr("trunk"), Content: gitlab.Ptr("one"), CommitMessage: gitlab.Ptr("Add"),
	})
	must(t, err)
	if info.FilePath != "a b/ü.txt" || info.Branch != "trunk" {
		t.Errorf("CreateFile = %+v", info)
	}
	_, resp, err := c.RepositoryFiles.CreateFile(path, "a b/ü.txt", &gitlab.CreateFileOptions{
		Branch: gitlab.Ptr("trunk"), Content: gitlab.Ptr("one"), CommitMessage: gitlab.Ptr("Add"),
	})
	if err == nil || resp.StatusCode != 400 || !strings.Contains(err.Error(), "A file with this name already exists") {
		t.Errorf("CreateFile of what exists: %v", err)
	}
	_, _, err = c.RepositoryFiles.UpdateFile(path, "a b/ü.txt", &gitlab.UpdateFileOptions{
		Branch: gitlab.Ptr("trunk"), Content: gitlab.Ptr("two"), CommitMessage: gitlab.Ptr("Change"),
	})
	must(t, err)
	_, resp, err = c.RepositoryFiles.UpdateFile(path, "a b/ü.txt", &gitlab.UpdateFileOptions{
		Branch: gitlab.Ptr("trunk"), Content: gitlab.Ptr("three"), CommitMessage: gitlab.Ptr("Change"), LastCommitID: gitlab.Ptr(first.ID),
	})
	if err == nil || resp.StatusCode != 400 || !strings.Contains(err.Error(), "has changed since you started editing it") {
		t.Errorf("UpdateFile over another's change: %v", err)
	}
	_, err = c.RepositoryFiles.DeleteFile(path, "a b/ü.txt", &gitlab.DeleteFileOptions{Branch: gitlab.Ptr("trunk"), CommitMessage: gitlab.Ptr("Away")})
	must(t, err)
	if _, resp, err := c.RepositoryFiles.GetFile(path, "a b/ü.txt", &gitlab.GetFileOptions{Ref: gitlab.Ptr("trunk")}); err == nil || resp.StatusCode != 404 {
		t.Errorf("GetFile after DeleteFile: %v", err)
	}

	file, _, err := c.RepositoryFiles.GetFile(path, "apps/web.yaml", &gitlab.GetFileOptions{Ref: gitlab.Ptr("feature/x")})
	must(t, err)
	blob, _, err := c.Repositories.RawBlobContent(path, file.BlobID)
	must(t, err)
	if string(blob) != "replicas: 2\n" {
		t.Errorf("RawBlobContent = %q", blob)
	}
	if blob, _, err = c.Repositories.Blob(path, file.BlobID); err != nil || !strings.Contains(string(blob), base64.StdEncoding.EncodeToString([]byte("replicas: 2\n"))) {
		t.Errorf("Blob = %q, %v", blob, err)
	}

	diffs, _, err := c.Commits.GetCommitDiff(path, second.ID, nil)
	must(t, err)
	if len(diffs) != 1 || diffs[0].NewPath != "apps/web.yaml" || diffs[0].Diff != "@@ -1 +1 @@\n-replicas: 1\n+replicas: 2\n" {
		t.Errorf("GetCommitDiff = %+v", diffs)
	}
	compared, _, err := c.Repositories.Compare(path, &gitlab.CompareOptions{From: gitlab.Ptr("trunk"), To: gitlab.Ptr("feature/x"), Unidiff: gitlab.Ptr(true)})
	must(t, err)
	if len(compared.Commits) != 1 || compared.Commit.ID != second.ID || len(compared.Diffs) != 1 || compared.CompareSameRef || compared.CompareTimeout ||
		!strings.HasPrefix(compared.Diffs[0].Diff, "--- a/apps/web.yaml\n+++ b/apps/web.yaml\n@@") || compared.WebURL != w.url+"/writing/site/-/compare/trunk...feature/x" {
		t.Errorf("Compare = %+v", compared)
	}
	base, _, err := c.Repositories.MergeBase(path, &gitlab.MergeBaseOptions{Ref: &[]string{"trunk", "feature/x"}})
	must(t, err)
	if base.ID != first.ID {
		t.Errorf("MergeBase = %+v", base)
	}
	refs, _, err := c.Commits.GetCommitRefs(path, first.ID, nil)
	must(t, err)
	if len(refs) != 2 || refs[0].Name != "feature/x" || refs[0].Type != "branch" {
		t.Errorf("GetCommitRefs = %+v", refs)
	}
	listed, _, err := c.Commits.ListCommits(path, &gitlab.ListCommitsOptions{All: gitlab.Ptr(true), Author: gitlab.Ptr("ADA@"), WithStats: gitlab.Ptr(true)})
	must(t, err)
	if len(listed) != 1 || listed[0].ID != first.ID || listed[0].Stats == nil || listed[0].Stats.Additions != 2 {
		t.Errorf("ListCommits = %+v", listed)
	}
	people, _, err := c.Repositories.Contributors(path, nil)
	must(t, err)
	if len(people) != 2 || people[0].Name != "Ada" || people[1].Commits != 4 {
		t.Errorf("Contributors = %+v", people)
	}

	for _, format := range []*string{nil, gitlab.Ptr("tar.gz"), gitlab.Ptr("tar"), gitlab.Ptr("zip")} {
		packed, _, err := c.Repositories.Archive(path, &gitlab.ArchiveOptions{Format: format, SHA: gitlab.Ptr("feature/x"), Path: gitlab.Ptr("apps")})
		must(t, err)
		if name, content := onlyFile(t, packed); name != "site-feature-x-"+second.ID+"-apps/apps/web.yaml" || content != "replicas: 2\n" {
			t.Errorf("the archive holds %s with %q", name, content)
		}
	}
}

// onlyFile unpacks an archive that has to hold one file.
func onlyFile(t *testing.T, packed []byte) (name, content string) {
	t.Helper()
	if r, err := zip.NewReader(bytes.NewReader(packed), int64(len(packed))); err == nil {
		for _, f := range r.File {
			if !f.FileInfo().IsDir() {
				in, err := f.Open()
				must(t, err)
				text, err := io.ReadAll(in)
				must(t, err)
				name, content = f.Name, string(text)
			}
		}
		return name, content
	}
	in := io.Reader(bytes.NewReader(packed))
	if z, err := gzip.NewReader(bytes.NewReader(packed)); err == nil {
		in = z
	}
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			return name, content
		}
		must(t, err)
		if h.Typeflag == tar.TypeReg {
			text, err := io.ReadAll(r)
			must(t, err)
			name, content = h.Name, string(text)
		}
	}
}

func clientRefs(t *testing.T, w *world, c *gitlab.Client) {
	project := w.project(w.group("refs", tidelock.Private), "site", tidelock.Private)
	head := string(w.push(project, map[string]string{"a": "1"}))
	const path = "refs/site"

	branch, _, err := c.Branches.CreateBranch(path, &gitlab.CreateBranchOptions{Branch: gitlab.Ptr("release/1"), Ref: gitlab.Ptr("main")})
	must(t, err)
	if branch.Name != "release/1" || branch.Commit.ID != head || !branch.Merged || !branch.CanPush {
		t.Errorf("CreateBranch = %+v", branch)
	}
	for name, want := range map[string]string{"release/1": "Branch already exists", "a..b": "Branch name is invalid", "-x": "Branch name is invalid"} {
		if _, resp, err := c.Branches.CreateBranch(path, &gitlab.CreateBranchOptions{Branch: &name, Ref: gitlab.Ptr("main")}); err == nil || resp.StatusCode != 400 || !strings.Contains(err.Error(), want) {
			t.Errorf("CreateBranch(%s): %v", name, err)
		}
	}
	for _, ref := range []string{"nope", "--all", "-x", "main~1", "main:a"} {
		if _, resp, err := c.Branches.CreateBranch(path, &gitlab.CreateBranchOptions{Branch: gitlab.Ptr("y"), Ref: &ref}); err == nil || resp.StatusCode != 400 || !strings.Contains(err.Error(), "Invalid reference name: "+ref) {
			t.Errorf("CreateBranch at %s: %v", ref, err)
		}
	}
	_, err = c.Branches.DeleteBranch(path, "release/1")
	must(t, err)
	if resp, err := c.Branches.DeleteBranch(path, "release/1"); err == nil || resp.StatusCode != 404 {
		t.Errorf("DeleteBranch twice: %v", err)
	}
	if resp, err := c.Branches.DeleteBranch(path, "main"); err == nil || resp.StatusCode != 405 {
		t.Errorf("DeleteBranch of the default branch: %v", err)
	}
	_, err = c.Branches.DeleteMergedBranches(path)
	must(t, err)
	branches, _, err := c.Branches.ListBranches(path, nil)
	must(t, err)
	if len(branches) != 1 || branches[0].Name != "main" || branches[0].Merged || branches[0].Commit.Title != "First" {
		t.Errorf("after DeleteMergedBranches: %+v", branches)
	}

	tag, _, err := c.Tags.CreateTag(path, &gitlab.CreateTagOptions{TagName: gitlab.Ptr("v2"), Ref: gitlab.Ptr("main"), Message: gitlab.Ptr("the second")})
	must(t, err)
	if tag.Message != "the second" || tag.Target == head || tag.Commit.ID != head || tag.Protected || tag.CreatedAt == nil {
		t.Errorf("CreateTag = %+v", tag)
	}
	tag, _, err = c.Tags.CreateTag(path, &gitlab.CreateTagOptions{TagName: gitlab.Ptr("v2-light"), Ref: gitlab.Ptr(head)})
	must(t, err)
	if tag.Message != "" || tag.Target != head {
		t.Errorf("CreateTag = %+v", tag)
	}
	for name, want := range map[string]string{"v2": "Tag v2 already exists", "a b": "Tag name invalid", "--x": "Tag name invalid"} {
		if _, resp, err := c.Tags.CreateTag(path, &gitlab.CreateTagOptions{TagName: &name, Ref: gitlab.Ptr("main")}); err == nil || resp.StatusCode != 400 || !strings.Contains(err.Error(), want) {
			t.Errorf("CreateTag(%s): %v", name, err)
		}
	}
	protected, _, err := c.ProtectedTags.ProtectRepositoryTags(path, &gitlab.ProtectRepositoryTagsOptions{Name: gitlab.Ptr("v*"), CreateAccessLevel: gitlab.Ptr(gitlab.NoPermissions)})
	must(t, err)
	if protected.Name != "v*" || protected.CreateAccessLevels[0].AccessLevel != gitlab.NoPermissions || protected.CreateAccessLevels[0].AccessLevelDescription != "No one" {
		t.Errorf("ProtectRepositoryTags = %+v", protected)
	}
	if _, resp, err := c.ProtectedTags.ProtectRepositoryTags(path, &gitlab.ProtectRepositoryTagsOptions{Name: gitlab.Ptr("v*")}); err == nil || resp.StatusCode != 409 {
		t.Errorf("protected twice: %v", err)
	}
	if _, resp, err := c.Tags.CreateTag(path, &gitlab.CreateTagOptions{TagName: gitlab.Ptr("v3"), Ref: gitlab.Ptr("main")}); err == nil || resp.StatusCode != 403 {
		t.Errorf("CreateTag of a protected one: %v", err)
	}
	tag, _, err = c.Tags.GetTag(path, "v2")
	must(t, err)
	if !tag.Protected {
		t.Errorf("GetTag = %+v", tag)
	}
	_, _, err = c.ProtectedTags.GetProtectedTag(path, "v*")
	must(t, err)
	rules, _, err := c.ProtectedTags.ListProtectedTags(path, nil)
	must(t, err)
	if len(rules) != 1 {
		t.Errorf("ListProtectedTags = %+v", rules)
	}
	_, err = c.ProtectedTags.UnprotectRepositoryTags(path, "v*")
	must(t, err)
	_, err = c.Tags.DeleteTag(path, "v2")
	must(t, err)
	if resp, err := c.Tags.DeleteTag(path, "v2"); err == nil || resp.StatusCode != 404 {
		t.Errorf("DeleteTag twice: %v", err)
	}
	if tags, _, err := c.Tags.ListTags(path, &gitlab.ListTagsOptions{Search: gitlab.Ptr("^v")}); err != nil || len(tags) != 2 || tags[0].Name != "v1" || tags[0].Message != "the first" {
		t.Errorf("ListTags = %+v, %v", tags, err)
	}

	edited, _, err := c.ProtectedBranches.UpdateProtectedBranch(path, "main", &gitlab.UpdateProtectedBranchOptions{
		AllowForcePush: gitlab.Ptr(true), AllowedToPush: &[]*gitlab.BranchPermissionOptions{{AccessLevel: gitlab.Ptr(gitlab.DeveloperPermissions)}},
	})
	must(t, err)
	if !edited.AllowForcePush || edited.PushAccessLevels[0].AccessLevel != gitlab.DeveloperPermissions || edited.MergeAccessLevels[0].AccessLevel != gitlab.MaintainerPermissions {
		t.Errorf("UpdateProtectedBranch = %+v", edited)
	}
	_, resp, err := c.ProtectedBranches.UpdateProtectedBranch(path, "main", &gitlab.UpdateProtectedBranchOptions{
		AllowedToPush: &[]*gitlab.BranchPermissionOptions{{UserID: gitlab.Ptr(int64(1))}},
	})
	if err == nil || resp.StatusCode != 400 {
		t.Errorf("UpdateProtectedBranch for one user: %v", err)
	}
	if _, resp, err := c.ProtectedBranches.UpdateProtectedBranch(path, "main", &gitlab.UpdateProtectedBranchOptions{
		AllowedToPush: &[]*gitlab.BranchPermissionOptions{{DeployKeyID: gitlab.Ptr(int64(4711))}},
	}); err == nil || resp.StatusCode != 400 {
		t.Errorf("UpdateProtectedBranch for a key that is none: %v", err)
	}
}

// TestH6H12CommitsAPI sends paths that mean something else to somebody, and
// names that do something to a terminal, through the API: the first are
// refused, and the second come back as they are, in JSON that is valid.
func TestH6H12CommitsAPI(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	auth := as(w.token)
	const site = "/projects/team%2Fsite/repository"
	commit := func(path string) answer {
		return w.call("POST", site+"/commits", fmt.Sprintf(
			`{"branch":"main","commit_message":"\u001b[31mred\u001b[0m & <script>","author_name":"\u001b]0;x\u0007<b>","actions":[{"action":"create","file_path":%s,"content":""}]}`, path), auth)
	}
	for _, path := range []string{
		`".git/config"`, `".GIT/hooks/x"`, `"a/.git/x"`, `"git~1/config"`, `".git./x"`, `".g\u200cit/config"`, `"a\\.git\\x"`,
		`"../x"`, `"a/../../x"`, `"/etc/passwd"`, `"//etc/passwd"`, `"a\u0000b"`, `"a\u001b[31m"`, `""`, `"a//b"`, `{"a":1}`,
	} {
		if got := commit(path); got.status != 400 {
			t.Errorf("create %s: %d %s", path, got.status, got.body)
		}
	}
	if refs, err := w.repos.Repo(project.ID).Refs(t.Context()); err != nil || len(refs) != 0 {
		t.Fatalf("something was committed: %v, %v", refs, err)
	}
	for _, path := range []string{".git/config", ".GIT", "%2E%2E/x", "..%2Fx", "a%2F..%2F..%2Fx", "git~1", "x%00", "x%1b"} {
		for _, method := range []string{"POST", "PUT", "DELETE"} {
			got := w.call(method, site+"/files/"+path, `{"branch":"main","commit_message":"x","content":"x"}`, auth)
			if got.status != 400 && got.status != 404 {
				t.Errorf("%s files/%s: %d %s", method, path, got.status, got.body)
			}
		}
	}

	const odd = `"-rf $(id) \"quo'te\" ; é & <x>.yaml"`
	if got := commit(odd); got.status != 201 {
		t.Fatalf("create %s: %d %s", odd, got.status, got.body)
	} else if made := got.object(t); made["message"] != "\x1b[31mred\x1b[0m & <script>" || made["author_name"] != "]0;x" && made["author_name"] != "]0;xb" {
		t.Errorf("the commit came back as %v", made)
	}
	tree := w.call("GET", site+"/tree", "", auth).json(t).([]any)
	name := tree[0].(map[string]any)["path"].(string)
	if name != `-rf $(id) "quo'te" ; é & <x>.yaml` {
		t.Errorf("the file came back as %q", name)
	}
	if got := w.call("GET", site+"/files/"+url.PathEscape(name)+"?ref=main", "", auth); got.status != 200 || got.object(t)["file_path"] != name {
		t.Errorf("GET of it: %d %s", got.status, got.body)
	}
	if got := w.call("GET", site+"/commits?path="+url.QueryEscape(name), "", auth).json(t).([]any); len(got) != 1 {
		t.Errorf("its commits: %v", got)
	}
	for _, query := range []string{"?sha=--output=/tmp/x", "?sha=-x", "?path=-x", "?path=--remote=x", "?path=..", "?sha=main&path=/etc/../x"} {
		if got := w.call("GET", site+"/archive"+query, "", auth); got.status != 404 && got.status != 400 {
			t.Errorf("H5 archive%s: %d", query, got.status)
		}
	}
	for _, query := range []string{"?from=--no-index&to=main", "?from=main&to=-O/x", "?from=main^&to=main"} {
		if got := w.call("GET", site+"/compare"+query, "", auth); got.status != 404 {
			t.Errorf("H5 compare%s: %d %s", query, got.status, got.body)
		}
	}
	if got := w.call("GET", site+"/commits?author=--all&ref_name=main", "", auth); got.status != 200 || got.body != "[]" {
		t.Errorf("H5 author: %d %s", got.status, got.body)
	}
}

// TestH4Archive asks for a private project's archive with every scope.
func TestH4Archive(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	w.push(project, map[string]string{"a": "1"})
	guest, reporter := w.user("gus"), w.user("ria")
	for user, level := range map[tidelock.User]tidelock.AccessLevel{guest: tidelock.Guest, reporter: tidelock.Reporter} {
		_, err := w.forge.SetMember(t.Context(), w.root, forge.OnProject(project), user.ID, level, w.root.User.CreatedAt.AddDate(1, 0, 0))
		must(t, err)
	}
	for _, path := range []string{"archive", "archive.tar.gz", "archive.tar", "archive.zip", "compare?from=main&to=main", "commits/main/diff", "blobs/" + strings.Repeat("0", 40)} {
		path := "/projects/team%2Fsite/repository/" + path
		for scope, want := range map[tidelock.Scope]int{
			tidelock.ScopeAPI: 200, tidelock.ScopeReadAPI: 200, tidelock.ScopeReadRepository: 200,
			tidelock.ScopeReadUser: 403, tidelock.ScopeWriteRepository: 403, tidelock.ScopeK8sProxy: 403, tidelock.ScopeReadRegistry: 403,
		} {
			if strings.Contains(path, "/blobs/") && want == 200 {
				want = 404
			}
			if got := w.call("GET", path, "", as(w.personal(reporter, scope))); got.status != want {
				t.Errorf("GET %s with %s: %d, want %d", path, scope, got.status, want)
			}
		}
		if got := w.call("GET", path, "", as(w.personal(guest, tidelock.ScopeAPI))); got.status != 403 {
			t.Errorf("GET %s by a guest: %d, want 403", path, got.status)
		}
		if got := w.call("GET", path, ""); got.status != 404 {
			t.Errorf("GET %s by nobody: %d, want 404", path, got.status)
		}
	}
	got := w.call("HEAD", "/projects/team%2Fsite/repository/archive.zip", "", as(w.token))
	if got.status != 200 || !strings.Contains(got.header.Get("Content-Disposition"), `.zip`) || got.body != "" {
		t.Errorf("HEAD: %d %v", got.status, got.header)
	}
	if got := w.call("GET", "/projects/team%2Fsite/repository/archive?format=tar.bz2", "", as(w.token)); got.status != 406 {
		t.Errorf("tar.bz2: %d %s", got.status, got.body)
	}
}

// TestTreeByKeyset walks a tree as clients do that ask for keyset pagination:
// by the Link alone.
func TestTreeByKeyset(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	files := map[string]string{}
	for i := range 25 {
		files[fmt.Sprintf("dir/%02d,;.txt", i)] = "x"
	}
	w.push(project, files)
	next, seen := w.url+"/api/v4/projects/team%2Fsite/repository/tree?pagination=keyset&per_page=10&recursive=true", 0
	for pages := 0; next != ""; pages++ {
		if pages > 3 {
			t.Fatal("there is no end of it")
		}
		got := w.call("GET", strings.TrimPrefix(next, w.url+"/api/v4"), "")
		if got.status != 200 || got.header.Get("X-Total") != "" {
			t.Fatalf("page %d: %d %v", pages, got.status, got.header)
		}
		seen += len(got.json(t).([]any))
		next, _, _ = strings.Cut(strings.TrimPrefix(got.header.Get("Link"), "<"), ">")
	}
	if seen != 26 {
		t.Errorf("%d entries were seen, want 26", seen)
	}
	if got := w.call("GET", "/projects/team%2Fsite/repository/tree?pagination=keyset&page_token=nope", ""); got.status != 400 {
		t.Errorf("a wrong token: %d %s", got.status, got.body)
	}
}

// TestConcurrentCommitsAPI races commits on one branch: each answer is 201 or
// a clear 400, and the history holds exactly the former.
func TestConcurrentCommitsAPI(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	w.push(project, map[string]string{"a": "1"})
	const many = 6
	answers := make([]answer, many)
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			answers[i] = w.call("POST", "/projects/team%2Fsite/repository/commits", fmt.Sprintf(
				`{"branch":"main","commit_message":"%d","actions":[{"action":"create","file_path":"f%d","content":"x"}]}`, i, i), as(w.token))
		})
	}
	all.Wait()
	won := 0
	for i, got := range answers {
		switch {
		case got.status == http.StatusCreated:
			won++
		case got.status != 400 || !strings.Contains(got.body, "Please refresh and try again"):
			t.Errorf("commit %d: %d %s", i, got.status, got.body)
		}
		there := w.call("HEAD", fmt.Sprintf("/projects/team%%2Fsite/repository/files/f%d?ref=main", i), "", as(w.token)).status == 200
		if there != (got.status == http.StatusCreated) {
			t.Errorf("commit %d was answered %d, and its file is there: %t", i, got.status, there)
		}
	}
	commits := w.call("GET", "/projects/team%2Fsite/repository/commits", "", as(w.token)).json(t).([]any)
	if won == 0 || len(commits) != won+1 {
		t.Errorf("%d were told that they won, of %d commits", won, len(commits)-1)
	}
}

// TestWriteErrors holds status and body of refusals that clients match on.
func TestWriteErrors(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	w.push(project, map[string]string{"a": "1", "dir/b": "2"})
	dan := w.user("dan")
	_, err := w.forge.SetMember(t.Context(), w.root, forge.OnProject(project), dan.ID, tidelock.Developer, w.root.User.CreatedAt.AddDate(1, 0, 0))
	must(t, err)
	root, developer := as(w.token), as(w.personal(dan, tidelock.ScopeAPI))
	git := as(w.personal(dan, tidelock.ScopeWriteRepository))
	const site = "/projects/team%2Fsite/repository"
	one := func(action string) string {
		return `{"branch":"main","commit_message":"x","actions":[` + action + `]}`
	}
	for _, c := range []struct {
		name, method, path, body, auth string
		status                         int
		want                           string
	}{
		{"a protected branch", "POST", "/commits", one(`{"action":"create","file_path":"x","content":""}`), developer, 403, `{"message":"403 Forbidden - refs/heads/main: you may not push to this protected branch"}`},
		{"a token for git", "POST", "/commits", one(`{"action":"create","file_path":"x","content":""}`), git, 403, ""},
		{"nothing given", "POST", "/commits", `{}`, root, 400, `{"error":"branch is missing, commit_message is missing, actions is missing"}`},
		{"no actions", "POST", "/commits", one(``), root, 400, `{"error":"actions is empty"}`},
		{"an action of another kind", "POST", "/commits", one(`{"action":"append","file_path":"x"}`), root, 400, `{"error":"actions[0] action does not have a valid value"}`},
		{"no content", "POST", "/commits", one(`{"action":"create","file_path":"x","content":null}`), root, 400, `{"error":"actions[0] content is missing"}`},
		{"content that is no base64", "POST", "/commits", one(`{"action":"create","file_path":"x","content":"?","encoding":"base64"}`), root, 400, `{"error":"actions[0] content is not base64"}`},
		{"a project to start from", "POST", "/commits", `{"branch":"x","commit_message":"x","start_project":"other","actions":[]}`, root, 400, ""},
		{"a file that is missing", "PUT", "/files/nope", `{"branch":"main","commit_message":"x","content":""}`, root, 400, `{"message":"A file with this name doesn't exist"}`},
		{"a file that exists", "POST", "/files/a", `{"branch":"main","commit_message":"x","content":""}`, root, 400, `{"message":"A file with this name already exists"}`},
		{"a directory that exists", "POST", "/files/dir", `{"branch":"main","commit_message":"x","content":""}`, root, 400, `{"message":"A directory with this name already exists"}`},
		{"a branch that is missing", "POST", "/files/x", `{"branch":"nope","commit_message":"x","content":""}`, root, 400, `{"message":"You can only create or edit files when you are on a branch"}`},
		{"a delete by query", "DELETE", "/files/dir%2Fb?branch=main&commit_message=x", "", root, 204, ""},
		{"a merge base of one", "GET", "/merge_base?refs[]=main", "", root, 400, ""},
		{"a comparison with nothing", "GET", "/compare?from=main&to=nope", "", root, 404, `{"message":"404 Ref Not Found"}`},
		{"a blob that is a tree", "GET", "/blobs/4b825dc642cb6eb9a060e54bf8d69288fbee4904", "", root, 404, `{"message":"404 Blob Not Found"}`},
	} {
		if got := w.call(c.method, site+c.path, c.body, c.auth); got.status != c.status || c.want != "" && got.body != c.want {
			t.Errorf("%s: %d %s, want %d %s", c.name, got.status, got.body, c.status, c.want)
		}
	}
	w.call("POST", "/projects/team%2Fsite/archive", "", root)
	for _, c := range [][2]string{{"POST", "/commits"}, {"POST", "/files/x"}, {"PUT", "/files/a"}, {"DELETE", "/files/a"}, {"POST", "/branches"}, {"DELETE", "/branches/feature%2Fx"}, {"POST", "/tags"}, {"DELETE", "/tags/v1"}, {"DELETE", "/merged_branches"}} {
		if got := w.call(c[0], site+c[1], `{"branch":"main"}`, root); got.status != 403 || !strings.Contains(got.body, "archived") {
			t.Errorf("%s %s of an archived project: %d %s", c[0], c[1], got.status, got.body)
		}
	}
}

// TestDeployKeyOnProtectedBranch lets one deploy key push to a branch that is
// nobody else's, and takes that away again.
func TestDeployKeyOnProtectedBranch(t *testing.T) {
	w := newWorld(t)
	c := w.client()
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	const path = "team/site"
	var keys []int64
	for _, mayPush := range []bool{true, true, false} {
		key, _, err := c.DeployKeys.AddDeployKey(path, &gitlab.AddDeployKeyOptions{
			Title: gitlab.Ptr("key"), Key: gitlab.Ptr(newPublicKey(t)), CanPush: gitlab.Ptr(mayPush),
		})
		must(t, err)
		keys = append(keys, key.ID)
	}
	push := func(key int64) bool {
		t.Helper()
		decision, err := w.forge.AuthorizePush(t.Context(), forge.Principal{Key: &tidelock.Key{ID: tidelock.KeyID(key)}}, project,
			[]forge.RefCommand{{Ref: "refs/heads/release", New: tidelock.CommitID(strings.Repeat("a", 40))}})
		must(t, err)
		return len(decision.Refused) == 0
	}
	made, _, err := c.ProtectedBranches.ProtectRepositoryBranches(path, &gitlab.ProtectRepositoryBranchesOptions{
		Name: gitlab.Ptr("release"), AllowedToPush: &[]*gitlab.BranchPermissionOptions{{DeployKeyID: &keys[0]}},
	})
	must(t, err)
	if len(made.PushAccessLevels) != 1 || made.PushAccessLevels[0].DeployKeyID != keys[0] {
		t.Errorf("the protection is %+v", made.PushAccessLevels)
	}
	if !push(keys[0]) || push(keys[1]) {
		t.Errorf("the key that may push: %t, the other: %t", push(keys[0]), push(keys[1]))
	}
	edited, _, err := c.ProtectedBranches.UpdateProtectedBranch(path, "release", &gitlab.UpdateProtectedBranchOptions{
		AllowedToPush: &[]*gitlab.BranchPermissionOptions{{ID: &keys[0], Destroy: gitlab.Ptr(true)}, {DeployKeyID: &keys[1]}},
	})
	must(t, err)
	if len(edited.PushAccessLevels) != 1 || edited.PushAccessLevels[0].DeployKeyID != keys[1] || push(keys[0]) || !push(keys[1]) {
		t.Errorf("after the change: %+v", edited.PushAccessLevels)
	}
	_, resp, err := c.ProtectedBranches.UpdateProtectedBranch(path, "release", &gitlab.UpdateProtectedBranchOptions{
		AllowedToPush: &[]*gitlab.BranchPermissionOptions{{DeployKeyID: &keys[2]}},
	})
	if err == nil || resp.StatusCode != 400 {
		t.Errorf("a key that may only read: %v", err)
	}
}
