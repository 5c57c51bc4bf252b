package storetest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// postgresVariable names a PostgreSQL database, by the URL of a user who may
// create schemas in it, for tests to use instead of a server of their own.
const postgresVariable = "TIDELOCK_TEST_POSTGRES"

// Postgres returns the URL of an empty PostgreSQL database that goes when the
// test ends: a schema of its own, which takes milliseconds to make where a
// database takes tenths of a second. The server is the one that
// TIDELOCK_TEST_POSTGRES names or, if it is not set and PostgreSQL is
// installed, a private one that starts with the first call and ends with the
// test process. Otherwise the test is skipped.
func Postgres(t testing.TB) string {
	t.Helper()
	server := os.Getenv(postgresVariable)
	if server == "" {
		var err error
		server, err = privatePostgres()
		if errors.Is(err, errNoPostgres) {
			t.Skipf("PostgreSQL is not installed; set %s to the URL of a server", postgresVariable)
		}
		if err != nil {
			t.Fatalf("start PostgreSQL: %v", err)
		}
	}
	target, err := url.Parse(server)
	if err != nil {
		t.Fatalf("%s is not a URL", postgresVariable)
	}
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), schemas.Add(1))
	administer(t, t.Context(), server, `CREATE SCHEMA `+name)
	t.Cleanup(func() {
		administer(t, context.WithoutCancel(t.Context()), server, `DROP SCHEMA `+name+` CASCADE`)
	})
	query := target.Query()
	query.Set("search_path", name)
	target.RawQuery = query.Encode()
	return target.String()
}

// EmptyPostgres takes out of a database that Postgres lent, and that is
// migrated, whatever a test has put there, and lets ids begin at 1 again, which
// is far less work than to make another. One statement empties all tables,
// because references are looked at when it ends.
func EmptyPostgres(t testing.TB, target string) {
	t.Helper()
	administer(t, t.Context(), target, `DO $$
		BEGIN
			EXECUTE (SELECT 'WITH ' || string_agg(format('d%s AS (DELETE FROM %I)', row_number, tablename), ', ') || ' SELECT'
				FROM (SELECT tablename, row_number() OVER () FROM pg_tables
					WHERE schemaname = current_schema() AND tablename <> 'goose_db_version') AS tables);
			PERFORM setval(quote_ident(sequencename)::REGCLASS, 1, FALSE) FROM pg_sequences
				WHERE schemaname = current_schema() AND last_value IS NOT NULL AND sequencename NOT LIKE 'goose%';
		END $$`)
}

var schemas atomic.Int64

func administer(t testing.TB, ctx context.Context, server, statement string) {
	t.Helper()
	db, err := sql.Open("pgx", server)
	if err != nil {
		t.Fatalf("open PostgreSQL server: %v", err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

var errNoPostgres = errors.New("no initdb in PATH or under /usr/lib/postgresql")

// privatePostgres starts a server once and returns its URL.
var privatePostgres = sync.OnceValues(func() (string, error) {
	programs, err := findPostgres()
	if err != nil {
		return "", err
	}
	// PostgreSQL refuses to run as root.
	var as *syscall.SysProcAttr
	if os.Getuid() == 0 {
		if as, err = accountOf("postgres"); err != nil {
			return "", err
		}
	}
	dir, err := os.MkdirTemp("", "tidelock-postgres-")
	if err != nil {
		return "", err
	}
	if as != nil {
		if err := os.Chown(dir, int(as.Credential.Uid), int(as.Credential.Gid)); err != nil {
			return "", errors.Join(err, os.RemoveAll(dir))
		}
	}
	if err := serve(programs, dir, as); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	target := url.URL{Scheme: "postgres", Path: "/postgres", RawQuery: url.Values{"host": {dir}, "user": {"postgres"}}.Encode()}
	return target.String(), nil
})

// findPostgres returns the folder of the newest installed server's programs.
func findPostgres() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	slices.SortFunc(found, func(a, b string) int { return majorVersion(a) - majorVersion(b) })
	if path, err := exec.LookPath("initdb"); err == nil && len(found) == 0 {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			found = []string{path}
		}
	}
	if len(found) == 0 {
		return "", errNoPostgres
	}
	return filepath.Dir(found[len(found)-1]), nil
}

// majorVersion reads the 15 of /usr/lib/postgresql/15/bin/initdb.
func majorVersion(path string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	if err != nil {
		return 0
	}
	return n
}

func accountOf(name string) (*syscall.SysProcAttr, error) {
	account, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

// keeper runs a server until its own standard input ends, which happens when
// the test process does, however it does, and then leaves nothing behind.
// Its arguments are the program folder and the folder to work in.
const keeper = `
	"$1/postgres" -D "$2/data" -k "$2" -c listen_addresses= -F -c full_page_writes=off \
		-c max_connections=200 -c shared_buffers=32MB </dev/null &
	server=$!
	trap '' INT TERM HUP
	cat >/dev/null
	kill -QUIT $server
	wait $server
	rm -rf "$2"`

// serve makes a cluster in a folder and returns when its server answers on
// the socket there. Collation is that of a language where the build knows
// how, because that is where the order of text goes wrong unnoticed.
func serve(programs, dir string, as *syscall.SysProcAttr) error {
	initialize := func(options ...string) error {
		options = append([]string{"-D", filepath.Join(dir, "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"}, options...)
		cmd := exec.Command(filepath.Join(programs, "initdb"), options...)
		cmd.Dir, cmd.SysProcAttr = dir, as
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	}
	err := initialize("--locale=C", "--locale-provider=icu", "--icu-locale=en")
	if err != nil {
		err = initialize("--locale=C")
	}
	if err != nil {
		return err
	}

	output, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer output.Close()
	cmd := exec.Command("/bin/sh", "-c", keeper, "keeper", programs, dir)
	cmd.Dir, cmd.SysProcAttr = dir, as
	cmd.Stdout, cmd.Stderr = output, output
	input, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := answers(dir); err != nil {
		input.Close()
		said, _ := os.ReadFile(output.Name())
		return errors.Join(err, cmd.Wait(), errors.New(string(said)))
	}
	lifeline = input
	return nil
}

// lifeline is held open as long as the process lives.
//
//lint:ignore U1000 a reference is what keeps it open
var lifeline io.Closer

func answers(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	db, err := sql.Open("pgx", "host="+dir+" user=postgres dbname=postgres")
	if err != nil {
		return err
	}
	defer db.Close()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the server: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
