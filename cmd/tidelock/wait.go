package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
)

// A liveRow says how a commit stands, as our own route tells it.
type liveRow struct {
	SHA         string       `json:"sha"`
	Environment string       `json:"environment"`
	State       string       `json:"state"`
	Message     string       `json:"message"`
	Descendant  string       `json:"descendant"`
	Version     string       `json:"version"`
	Rollouts    []rolloutRow `json:"rollouts"`
}

func newWaitCommand(env *environment) *cobra.Command {
	var source sourceFlags
	var output outputFlag
	var about commitFlags
	var w wait
	cmd := &cobra.Command{
		Use:   "wait [commit]",
		Short: "Wait until a commit is live, or has failed",
		Long: `Wait until a commit, or a newer one that contains it, is applied and healthy
everywhere it is deployed to, or in one environment. It tells of every step on
standard error, and goes on when the server cannot be reached for a while.

The exit code is the result, so that a CI/CD job can wait in this way:
0 it is live, 1 it failed or another commit took its place, 3 the time is over.

` + whichCommit,
		Example: `  tidelock wait
  tidelock wait 1a2b3c4d --project team/site --environment production
  tidelock wait main --project team/site --timeout 30m -o json`,
		Args: atMostOneCommit,
		RunE: func(cmd *cobra.Command, args []string) error {
			if w.timeout < 0 {
				return misusef("--timeout must not be negative")
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			if w.project, w.commit, err = about.find(cmd.Context(), env, c.source, args); err != nil {
				return err
			}
			w.env, w.connection = env, c
			result, err := w.run(cmd.Context())
			if result.raw != nil {
				if printErr := w.print(output, result); printErr != nil && err == nil {
					err = printErr
				}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&w.environment, "environment", "", "only this environment (default: all that it goes to)")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 10*time.Minute, "for how long to wait; 0 asks once")
	about.add(cmd)
	source.add(cmd)
	output.add(cmd)
	return cmd
}

// whichCommit is the help on the argument of commands about one commit.
const whichCommit = `A commit is named by its id, in full or short, by a branch or tag of the project,
or from what is checked out here, such as HEAD~1. Without one it is that of the
CI/CD job, or else what is checked out here. The project is that of the job, or
of the remote of what is checked out here.`

func atMostOneCommit(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return misusef("%q takes one commit, but got %d; see %q", cmd.CommandPath(), len(args), cmd.CommandPath()+" --help")
	}
	return nil
}

// commitFlags say which commit of which project a command is about.
type commitFlags struct{ project string }

func (f *commitFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.project, "project", "", "path or id of the project (default: of the CI/CD job, or of the remote of what is checked out here)")
}

// find names the project and the commit.
func (f commitFlags) find(ctx context.Context, env *environment, from source, args []string) (project, commit string, err error) {
	tree := workingTree{path: "."}
	if len(args) > 0 {
		commit = args[0]
	}
	if commit == "" {
		commit = env.getenv("CI_COMMIT_SHA")
	}
	if named := cmp.Or(commit, "HEAD"); named == "HEAD" || strings.ContainsAny(named, "~^") { // as no ref is called
		commit = tree.git(ctx, "rev-parse", "--verify", "--quiet", named+"^{commit}")
		switch {
		case commit == "" && named == "HEAD":
			return "", "", misusef("no commit is named, and none is checked out here; say which")
		case commit == "":
			return "", "", misusef("there is no commit %q in what is checked out here", named)
		}
	}
	project = f.project
	if project == "" && sameServer(env.getenv("CI_SERVER_URL"), from.URL) {
		project = cmp.Or(env.getenv("CI_PROJECT_ID"), env.getenv("CI_PROJECT_PATH"))
	}
	if project == "" {
		project = projectOf(tree.remote(ctx), from.URL)
	}
	if project == "" {
		return "", "", misusef("no project is named, and what is checked out here is not of %s; say --project", from.URL)
	}
	return project, commit, nil
}

func sameServer(a, b string) bool {
	return a != "" && strings.TrimRight(a, "/") == strings.TrimRight(b, "/")
}

// projectOf is the path of the project that a remote leads to on a server; ""
// when it leads elsewhere.
func projectOf(remote, server string) string {
	at, err := url.Parse(server)
	if err != nil || remote == "" {
		return ""
	}
	if !strings.Contains(remote, "://") { // user@host:path
		host, path, ok := strings.Cut(remote, ":")
		if !ok || strings.Contains(host, "/") {
			return ""
		}
		remote = "ssh://" + host + "/" + strings.TrimPrefix(path, "/")
	}
	u, err := url.Parse(remote)
	if err != nil || !strings.EqualFold(u.Hostname(), at.Hostname()) || u.Scheme != "ssh" && u.Port() != at.Port() {
		return ""
	}
	path := strings.Trim(u.Path, "/")
	if u.Scheme != "ssh" {
		below := strings.Trim(at.Path, "/")
		if below != "" {
			inside, ok := strings.CutPrefix(path, below+"/")
			if !ok {
				return ""
			}
			path = inside
		}
	}
	return strings.TrimSuffix(path, ".git")
}

// A wait asks until a commit is live.
type wait struct {
	env         *environment
	connection  *connection
	project     string
	commit      string
	environment string
	timeout     time.Duration
}

// How long one question waits for news, how much longer its answer may take,
// and how long it is before a question is asked again that brought no news or
// found no server.
const (
	longPoll   = 50 * time.Second
	pollGrace  = 20 * time.Second
	firstAgain = 500 * time.Millisecond
	lastAgain  = 5 * time.Second
)

// run returns the last answer, if there was one, and an error unless the
// commit is live.
func (w *wait) run(ctx context.Context) (last answer[liveRow], err error) {
	end := time.Now().Add(w.timeout)
	again := firstAgain
	silent := false // about a server that does not answer
	for {
		asked := time.Now()
		found, err := w.ask(ctx, last.value.Version, min(time.Until(end), longPoll))
		if ctx.Err() != nil {
			return last, errInterrupted
		}
		left := time.Until(end)
		switch {
		case err == nil:
			if silent {
				w.env.warnf("the server is back")
			}
			silent = false
			news := found.value.Version != last.value.Version
			result, done := w.result(found.value)
			if news && result == nil && (done || left > 0) { // an error says itself what it is about
				w.tell(last.value, found.value)
			}
			last = found
			w.commit = found.value.SHA // a branch may move on meanwhile
			if done {
				return last, result
			}
			if news {
				again = firstAgain
			}
			if news || time.Since(asked) > firstAgain {
				again = 0 // it did wait
			}
		case !passes(err):
			return last, w.connection.explain(w.path(), err)
		case !silent && left > 0:
			silent = true
			w.env.warnf("%v; trying again for %s", w.connection.explain(w.path(), err), left.Round(time.Second))
		}
		if left <= 0 {
			return last, w.timedOut(last, err)
		}
		select {
		case <-ctx.Done():
			return last, errInterrupted
		case <-time.After(min(left, again/2+rand.N(again/2+1))):
		}
		again = min(max(2*again, firstAgain), lastAgain)
	}
}

func (w *wait) path() string {
	return at("projects/%s/repository/commits/%s/live", w.project, w.commit)
}

// ask puts the question once.
func (w *wait) ask(ctx context.Context, seen string, most time.Duration) (a answer[liveRow], err error) {
	ctx, cancel := context.WithTimeout(ctx, max(most, 0)+pollGrace)
	defer cancel()
	query := struct {
		Environment string `url:"environment,omitempty"`
		Version     string `url:"version,omitempty"`
		Wait        int    `url:"wait,omitempty"`
	}{w.environment, seen, int(max(most, 0) / time.Second)}
	request, err := w.connection.NewRequest(http.MethodGet, w.path(), query, []gitlab.RequestOptionFunc{gitlab.WithContext(ctx)})
	if err != nil {
		return a, fmt.Errorf("make a request: %w", err)
	}
	if _, err := w.connection.Do(request, &a.raw); err != nil {
		return a, err
	}
	if err := json.Unmarshal(a.raw, &a.value); err != nil {
		return a, fmt.Errorf("read the answer to GET %s: %w", w.path(), err)
	}
	return a, nil
}

// passes reports whether an error may be gone when the question is put again:
// the server restarts, is busy, or the way to it is broken.
func passes(err error) bool {
	if e, ok := errors.AsType[*gitlab.ErrorResponse](err); ok {
		status := e.Response.StatusCode
		return status == http.StatusTooManyRequests || status >= http.StatusInternalServerError
	}
	if errors.Is(err, gitlab.ErrNotFound) {
		return false
	}
	if _, ok := errors.AsType[*url.Error](err); ok { // whatever HTTP could not do
		return !misled(err)
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF)
}

// misled reports whether an error is about where the server was looked for,
// which stays as it is.
func misled(err error) bool {
	_, unknownCA := errors.AsType[x509.UnknownAuthorityError](err)
	_, wrongHost := errors.AsType[x509.HostnameError](err)
	_, notTLS := errors.AsType[tls.RecordHeaderError](err)
	noHost, ok := errors.AsType[*net.DNSError](err)
	return unknownCA || wrongHost || notTLS || ok && noHost.IsNotFound ||
		strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// result is what an answer comes to, if waiting on is of no use.
func (w *wait) result(l liveRow) (err error, done bool) {
	switch l.State {
	case "live":
		return nil, true
	case "failed", "superseded":
		return fmt.Errorf("%s is not live%s: %s", short(l.SHA), w.where(), l.Message), true
	}
	return nil, false
}

func (w *wait) where() string {
	if w.environment == "" {
		return ""
	}
	return " in " + w.environment
}

func (w *wait) timedOut(last answer[liveRow], err error) error {
	text := last.value.Message
	if err != nil {
		text = w.connection.explain(w.path(), err).Error()
	}
	return tidelock.Errorf(tidelock.Unavailable, "%s is not live%s after %s: %s", short(w.commit), w.where(), w.timeout, text)
}

// toldAtOnce bounds the lines about one answer.
const toldAtOnce = 10

// tell writes what changed between two answers.
func (w *wait) tell(before, now liveRow) {
	if now.State != before.State || now.Message != before.Message {
		w.env.warnf("%s %s: %s", short(now.SHA), now.State, now.Message)
	}
	if len(now.Rollouts) < 2 {
		return // the message is about it
	}
	type place struct{ agent, applier string }
	known := map[place]rolloutRow{}
	for _, r := range before.Rollouts {
		known[place{r.Agent, r.Applier}] = r
	}
	told := 0
	for _, r := range now.Rollouts {
		b := known[place{r.Agent, r.Applier}]
		if b.State == r.State && b.Message == r.Message && b.SHA == r.SHA {
			continue
		}
		if told++; told > toldAtOnce {
			continue
		}
		line := strings.TrimSpace(fmt.Sprintf("%s %s on %s is %s", r.Environment, r.Applier, r.Agent, r.State))
		if message := oneLine(r.Message); message != "" {
			line += ": " + message
		}
		w.env.warnf("  %s", line)
	}
	if told > toldAtOnce {
		w.env.warnf("  and %d more", told-toldAtOnce)
	}
}

func (w *wait) print(output outputFlag, last answer[liveRow]) error {
	if output.json() {
		return printJSON(w.env.stdout, last.raw)
	}
	if len(last.value.Rollouts) == 0 {
		return nil
	}
	t := newTable(w.env.stdout, "ENVIRONMENT", "OBJECT", "AGENT", "COMMIT", "STATE", "MESSAGE")
	for _, r := range last.value.Rollouts {
		t.row(orDash(r.Environment), r.Applier, r.Agent, short(r.SHA), r.State, oneLine(r.Message))
	}
	return t.flush()
}
