package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/servertest"
	"tidelock.dev/internal/tunnel"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tidelock": main})
}

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "home", ".config"))
			env.Setenv("XDG_DATA_HOME", "")
			env.Setenv("GIT_CONFIG_GLOBAL", os.DevNull)
			env.Setenv("GIT_CONFIG_NOSYSTEM", "1")
			env.Setenv("GIT_TERMINAL_PROMPT", "0")
			for _, who := range []string{"AUTHOR", "COMMITTER"} {
				env.Setenv("GIT_"+who+"_NAME", "Ada")
				env.Setenv("GIT_"+who+"_EMAIL", "ada@forge.example")
			}
			// Commands would sleep for a second before they exit, for races in what
			// they leave running, and they leave nothing running.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Values["t"] = env.T()
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"forge":     forgeCommand,
			"freeport":  freePortCommand,
			"waitready": waitReadyCommand,
			"exits":     exitsCommand,
			"capture":   captureCommand,
			"mode":      modeCommand,
			"agent":     agentCommand,
			"sees":      seesCommand,
			"until":     untilCommand,
		},
	})
}

// forge starts a server in the test's process and names it to clients:
// TIDELOCK_URL, TIDELOCK_TOKEN, TIDELOCK_CA_FILE, GIT_SSL_CAINFO, and HOST.
func forgeCommand(ts *testscript.TestScript, neg bool, args []string) {
	t, ok := ts.Value("t").(testing.TB)
	if neg || len(args) != 0 || !ok {
		ts.Fatalf("usage: forge")
	}
	s := servertest.Start(t)
	ts.Setenv("TIDELOCK_URL", s.URL)
	ts.Setenv("TIDELOCK_TOKEN", s.Token)
	ts.Setenv("TIDELOCK_CA_FILE", s.CAFile)
	ts.Setenv("GIT_SSL_CAINFO", s.CAFile)
	ts.Setenv("HOST", strings.TrimPrefix(s.URL, "https://"))
	ts.Setenv("DATA", s.DataDir)
}

// agent TOKEN-FILE (NAME URL REVISION)… is an agent that connects, tells of
// sources of the branch main, and leaves once it knows of each whether it is
// served. A REVISION of "-" is none.
func agentCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args)%3 != 1 {
		ts.Fatalf("usage: agent token-file (name url revision)...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	session := connectAgent(ctx, ts, args[0])
	defer session.Close("done")
	stream, err := agentrpc.NewAnnouncementServiceClient(session.Client(), "http://forge").Announce(ctx)
	ts.Check(err)
	set := &agentrpc.SourceChange{Complete: true}
	for source := range slices.Chunk(args[1:], 3) {
		set.Upserts = append(set.Upserts, &agentrpc.Source{
			Id: "GitRepository/flux-system/" + source[0], Uid: source[0], Url: source[1],
			Ref: &agentrpc.RefSpec{Branch: "main"}, Revision: strings.TrimPrefix(source[2], "-"),
		})
	}
	ts.Check(stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Sources{Sources: set}}))
	for range set.Upserts {
		for answered := false; !answered; {
			m, err := stream.Receive()
			ts.Check(err)
			answered = m.GetResolution() != nil
		}
	}
}

// connectAgent makes the connection of an agent whose token is in a file.
func connectAgent(ctx context.Context, ts *testscript.TestScript, tokenFile string) *tunnel.Session {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ts.ReadFile(ts.Getenv("TIDELOCK_CA_FILE"))))
	session, err := tunnel.Dial(ctx, tunnel.DialConfig{
		URL:    "wss://" + ts.Getenv("HOST") + agentserver.Path,
		Header: http.Header{"Authorization": {"Bearer " + strings.TrimSpace(ts.ReadFile(tokenFile))}},
		TLS:    &tls.Config{RootCAs: pool},
	})
	ts.Check(err)
	_, err = agentrpc.NewSessionServiceClient(session.Client(), "http://forge").Register(ctx, &agentrpc.RegisterRequest{Instance: "script"})
	ts.Check(err)
	return session
}

// freeport NAME puts a free port into a variable.
func freePortCommand(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer l.Close()
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// waitready URL CA-FILE waits until a server is ready.
func waitReadyCommand(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		if err = probe(ctx, args[0], ts.MkAbs(args[1])); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("%s is not ready: %v", args[0], err)
		case <-tick.C:
		}
	}
}

func probe(ctx context.Context, url, caFile string) error {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/-/readyz", nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("%s: %s", answer.Status, text)
	}
	return nil
}

// exits CODE COMMAND… runs a command that must exit with a code.
func exitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("got exit code %d, want %d", got, want)
	}
}

// until REGEXP COMMAND… runs a command again and again until it prints what is
// wanted, whatever its exit code.
func untilCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until regexp command...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		ts.Exec(args[1], args[2:]...)
		if want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%v did not print %q", args[1:], args[0])
		}
	}
}

// capture NAME puts what the last command printed into a variable.
func captureCommand(ts *testscript.TestScript, neg bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// mode PERMISSIONS FILE… checks who may read files.
func modeCommand(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s: got mode %s, want %s", name, got, args[0])
		}
	}
}
