package store_test

import (
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/store"
)

// firstRelease is what a server with the first schema has in its database:
// ada, her project with a push, its protected branch, and two tokens.
const firstRelease = `
	INSERT INTO users (username, username_key, name, name_key, email, admin, bot, blocked, created_at)
		VALUES ('Ada', 'ada', 'Ada', 'ada', 'ada@example.com', TRUE, FALSE, FALSE, 1000000);
	INSERT INTO namespaces (kind, parent_id, path, path_key, full_path, name, name_key, full_name, description, visibility, owner_id, created_at)
		VALUES ('user', NULL, 'Ada', 'ada', 'Ada', 'Ada', 'ada', 'Ada', '', 0, 1, 1000000);
	INSERT INTO projects (namespace_id, path, path_key, full_path, name, name_key, full_name, description, visibility, default_branch, archived, creator_id, created_at, updated_at)
		VALUES (1, 'site', 'site', 'Ada/site', 'site', 'site', 'Ada / site', '', 0, 'main', FALSE, 1, 1000000, 1000000);
	INSERT INTO routes (path_key, namespace_id, project_id, redirect) VALUES ('ada', 1, NULL, FALSE), ('ada/site', NULL, 1, FALSE);
	INSERT INTO protected_branches (project_id, pattern, push_level, merge_level, allow_force) VALUES (1, 'main', 40, 40, FALSE);
	INSERT INTO tokens (hash, kind, name, user_id, project_id, namespace_id, username, level, scopes, creator_id, created_at, expires_at, last_used, revoked)
		VALUES ('personal', 'personal', 'Laptop', 1, NULL, NULL, '', 0, 'api', 1, 1000000, 0, 0, FALSE),
		       ('deploy', 'deploy', 'flux', NULL, 1, NULL, 'flux', 0, 'read_repository', 1, 1000000, 0, 0, FALSE);
	INSERT INTO pushes (project_id, pushed_by, token_id, pushed_at, announced, trace) VALUES (1, 1, 1, 1000000, TRUE, '');
	INSERT INTO heads (project_id, ref, object, commit_id, push_id, moved_at) VALUES (1, CAST('refs/heads/main' AS %BYTES%), 'c0ffee', 'c0ffee', 1, 1000000);
`

// A server of the first release is upgraded by starting this one.
func TestUpgrade(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine.name, func(t *testing.T) {
			url := engine.url(t)
			bytes := map[string]string{"sqlite": "BLOB", "postgres": "BYTEA"}[engine.name]
			must(t, store.MakeAt(t.Context(), url, 1, strings.ReplaceAll(firstRelease, "%BYTES%", bytes)))
			db, ctx := open(t, url), t.Context()

			site, err := db.ProjectByPath(ctx, "ada/site")
			must(t, err)
			head, err := db.Head(ctx, site.ID, "refs/heads/main")
			must(t, err)
			push, err := db.Push(ctx, head.Push)
			must(t, err)
			if head.Commit != "c0ffee" || push.Key != 0 || push.Token != 1 {
				t.Errorf("the head is %+v of push %+v", head, push)
			}
			branches, err := db.ProtectedBranches(ctx, site.ID)
			must(t, err)
			if len(branches) != 1 || branches[0].PushLevel != tidelock.Maintainer || len(branches[0].Keys) != 0 {
				t.Errorf("the protected branches are %+v", branches)
			}
			level, err := db.AccessLevel(ctx, 1, tidelock.Holder{Project: site.ID}, time.Now())
			must(t, err)
			if level != tidelock.Owner {
				t.Errorf("ada is %v of her project", level)
			}

			found, _, err := db.Tokens(ctx, tidelock.TokenFilter{Search: "lap", Now: time.Now()}, tidelock.Page{})
			must(t, err)
			if len(found) != 1 || found[0].Name != "Laptop" || found[0].Family != 0 {
				t.Errorf("the tokens called lap… are %+v", found)
			}
			next := found[0]
			next.Family = found[0].ID
			rotated, err := db.RotateToken(ctx, found[0].ID, next, "rotated")
			must(t, err)
			if old, err := db.TokenByHash(ctx, "personal"); err != nil || !old.Revoked || rotated.ID <= 2 {
				t.Errorf("after it was rotated to %+v, the token is %+v, %v", rotated, old, err)
			}
			_, err = db.RecordPush(ctx, tidelock.Push{Project: site.ID, Key: 7, Updates: []tidelock.RefUpdate{
				{Ref: "refs/heads/main", New: "decade", Commit: "decade"},
			}})
			must(t, err)
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
