package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"tidelock.dev"
)

func openFileStore(t testing.TB) (*DB, tidelock.Project) {
	t.Helper()
	db, err := Open(t.Context(), Config{URL: filepath.Join(t.TempDir(), "tidelock.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	ada, err := db.CreateUser(t.Context(), tidelock.User{Username: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	site, err := db.CreateProject(t.Context(), tidelock.Project{Namespace: ada.Namespace, Path: "site"})
	if err != nil {
		t.Fatal(err)
	}
	return db, site
}

func record(ctx context.Context, db *DB, project tidelock.ProjectID, object string) error {
	_, err := db.RecordPush(ctx, tidelock.Push{Project: project, Updates: []tidelock.RefUpdate{
		{Ref: "refs/heads/main", New: tidelock.CommitID(object), Commit: tidelock.CommitID(object)},
	}})
	return err
}

// A full disk fails pushes, leaves the heads where they were, and is
// forgotten once there is room.
func TestFullDisk(t *testing.T) {
	db, site := openFileStore(t)
	ctx := t.Context()
	if err := record(ctx, db, site.ID, "first"); err != nil {
		t.Fatal(err)
	}
	var pages int
	if err := db.writes.QueryRowContext(ctx, `PRAGMA page_count`).Scan(&pages); err != nil {
		t.Fatal(err)
	}
	limit := func(n int) {
		t.Helper()
		if _, err := db.writes.ExecContext(ctx, fmt.Sprintf(`PRAGMA max_page_count = %d`, n)); err != nil {
			t.Fatal(err)
		}
	}
	limit(pages + 2)
	last := "first"
	var failed error
	for i := range 1000 {
		object := fmt.Sprint(strings.Repeat("x", 200), i)
		if failed = record(ctx, db, site.ID, object); failed != nil {
			break
		}
		last = object
	}
	if failed == nil || tidelock.KindOf(failed) != tidelock.Internal {
		t.Fatalf("got error %v, want an internal one", failed)
	}
	head, err := db.Head(ctx, site.ID, "refs/heads/main")
	if err != nil || string(head.Object) != last {
		t.Fatalf("got head %q, %v, want %q", head.Object, err, last)
	}
	limit(pages + 1000)
	if err := record(ctx, db, site.ID, "room"); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnly(t *testing.T) {
	db, site := openFileStore(t)
	ctx := t.Context()
	for _, p := range []*pool{db.writes, db.notes} {
		if _, err := p.ExecContext(ctx, `PRAGMA query_only = 1`); err != nil {
			t.Fatal(err)
		}
	}
	for what, err := range map[string]error{
		"push": record(ctx, db, site.ID, "c1"),
		"mark": db.MarkAnnounced(ctx, 1),
	} {
		if err == nil || tidelock.KindOf(err) != tidelock.Internal {
			t.Errorf("%s: got error %v, want an internal one", what, err)
		}
	}
	if _, err := db.Project(ctx, site.ID); err != nil {
		t.Error(err)
	}
}

// What another process holds too long is an error that says so.
func TestBusy(t *testing.T) {
	db, site := openFileStore(t)
	ctx := t.Context()
	if _, err := db.writes.ExecContext(ctx, `PRAGMA busy_timeout = 1`); err != nil {
		t.Fatal(err)
	}
	tx, err := db.notes.BeginTx(ctx, nil) // as another process would
	if err != nil {
		t.Fatal(err)
	}
	err = record(ctx, db, site.ID, "c1")
	if tidelock.KindOf(err) != tidelock.Unavailable {
		t.Errorf("got error %v, want one of kind %v", err, tidelock.Unavailable)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := record(ctx, db, site.ID, "c1"); err != nil {
		t.Fatal(err)
	}
}

// A write that waits for its turn stops waiting when its caller does.
func TestCancelWhileWaitingForTurn(t *testing.T) {
	db, site := openFileStore(t)
	db.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- record(ctx, db, site.ID, "c1") }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got error %v, want %v", err, context.Canceled)
	}
	<-db.turn
	if err := record(t.Context(), db, site.ID, "c1"); err != nil {
		t.Fatal(err)
	}
}

func TestSettings(t *testing.T) {
	db, _ := openFileStore(t)
	for _, tt := range []struct {
		pool         *pool
		pragma, want string
	}{
		{db.writes, "journal_mode", "wal"},
		{db.writes, "synchronous", "2"},
		{db.writes, "foreign_keys", "1"},
		{db.notes, "journal_mode", "wal"},
		{db.notes, "synchronous", "1"},
		{db.notes, "foreign_keys", "1"},
		{db.reads, "query_only", "1"},
	} {
		var got string
		if err := tt.pool.QueryRowContext(t.Context(), `PRAGMA `+tt.pragma).Scan(&got); err != nil || got != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.pragma, got, err, tt.want)
		}
	}
}

// The reads on every request and every push go through an index.
func TestHotReadsUseAnIndex(t *testing.T) {
	db, _ := openFileStore(t)
	for _, text := range []string{
		selectTokenByHash, selectAgentTokenByHash, selectProjectByPath, selectNamespaceByPath, selectUser, selectUserByName,
		selectHeads + ` AND ref = ?`, lockProject, selectUnannounced, selectAccessLevel, selectPush, countGrants, selectProtectedBranches,
		selectImageByName, selectTag, selectTags, selectTagsOf, selectTagHeads, selectArtifact, selectBlobSeen, selectTagRules,
		selectReferrers, selectHolders, selectBlobsIn + `(?)`, selectArtifactsIn + `(?)`, selectOldBlobs, `SELECT ` + artifactColumns + ` FROM artifacts a WHERE a.image_id = ? AND a.subject = ? AND a.subject <> ''`,
		`SELECT ` + pushColumns + ` FROM ` + fromPushes + ` WHERE p.project_id = ? ORDER BY p.id DESC LIMIT 20`,
		`SELECT ` + announcementColumns + ` FROM ` + announcementTables + ` WHERE a.agent_id = ? AND a.latest ORDER BY a.id DESC`,
		`SELECT ` + statusColumns + ` FROM ` + statusTables + ` WHERE p.project_id = ? AND p.commit_id = ? AND t.name = ? AND t.latest ORDER BY t.id`,
		`SELECT ` + pipelineColumns + ` FROM pipelines p WHERE p.project_id = ? AND p.commit_id = ? ORDER BY p.id DESC LIMIT 1`,
	} {
		args := make([]any, strings.Count(text, "?"))
		for i := range args {
			args[i] = 1
		}
		plan, err := many(t.Context(), db.point(t.Context()), "plan", func(row scanner) (string, error) {
			var id, parent, unused int
			var detail string
			err := row.Scan(&id, &parent, &unused, &detail)
			return detail, err
		}, `EXPLAIN QUERY PLAN `+text, args...)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range plan {
			if strings.HasPrefix(step, "SCAN") && !strings.Contains(step, "INDEX") && !strings.HasPrefix(step, "SCAN above") && !strings.HasPrefix(step, "SCAN invited") && !strings.HasPrefix(step, "SCAN levels") {
				t.Errorf("%s\nscans a table:\n%s", text, strings.Join(plan, "\n"))
			}
			if strings.Contains(step, "members") && strings.HasSuffix(step, "(user_id=?)") {
				t.Errorf("%s\nreads all that a user is a member of:\n%s", text, strings.Join(plan, "\n"))
			}
		}
	}
}
