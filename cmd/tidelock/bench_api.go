package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

type benchAPIOptions struct {
	rate     int
	duration time.Duration
	projects int
	rounds   int
}

func newBenchAPICommand(env *environment, source *sourceFlags) *cobra.Command {
	var opts benchAPIOptions
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "api",
		Short: "Measure how long the API takes to answer under a steady load",
		Long: `Send a mix of reading requests at a steady rate, whatever the answers take, and
list many projects in pages of 100. Times count from the moment at which a
request was due, so that a server that stalls is seen by every request that had
to wait. A request that cannot even be sent, because a thousand others wait for
their answers, counts as an error.

Without --url, --context and TIDELOCK_URL the bench starts a server of its own in
its own process, on a temporary folder; it and its clients then share this
process. It makes a group with the projects, and removes it in the end.`,
		Example: `  tidelock bench api
  tidelock bench api --rate 200 --duration 60s -o json`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.rate < 1 || opts.projects < 1 || opts.rounds < 1 || opts.duration < time.Second {
				return misusef("--rate, --projects and --rounds must be at least 1, --duration at least 1s")
			}
			result, err := benchAPI(cmd.Context(), env, source, opts)
			if err != nil {
				return err
			}
			return output.print(env.stdout, result)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&opts.rate, "rate", 200, "requests per second")
	flags.DurationVar(&opts.duration, "duration", 30*time.Second, "how long to keep that up")
	flags.IntVar(&opts.projects, "projects", 1000, "projects to make and to list")
	flags.IntVar(&opts.rounds, "rounds", 5, "how often to list them all")
	output.add(cmd)
	return cmd
}

// A latency is what requests took, in milliseconds.
type latency struct {
	Requests int     `json:"requests"`
	P50      float64 `json:"p50"`
	P99      float64 `json:"p99"`
	Max      float64 `json:"max"`
}

func latencyOf(times []time.Duration) latency {
	if len(times) == 0 {
		return latency{}
	}
	s := spreadOf(times)
	return latency{Requests: len(times), P50: s.P50, P99: s.P99, Max: float64(slices.Max(times).Microseconds()) / 1000}
}

// apiResult is what the bench prints.
type apiResult struct {
	Rate     int                `json:"rate"`
	Seconds  float64            `json:"seconds"`
	Errors   int                `json:"errors"`
	All      latency            `json:"all"`
	Requests map[string]latency `json:"requests"`
	Listing  struct {
		Projects int     `json:"projects"`
		Page     latency `json:"page"`
		All      latency `json:"all"` // every page, one after another
	} `json:"listing"`

	firstError error
}

func (r apiResult) table(w io.Writer) error {
	t := newTable(w, "REQUEST", "COUNT", "P50", "P99", "MAX", "")
	row := func(name string, l latency) {
		t.row(name, strconv.Itoa(l.Requests), fmt.Sprintf("%.1f", l.P50), fmt.Sprintf("%.1f", l.P99), fmt.Sprintf("%.1f", l.Max), "ms")
	}
	for _, q := range apiMix {
		row(q.name, r.Requests[q.name])
	}
	row("all", r.All)
	row("page of 100 projects", r.Listing.Page)
	row(fmt.Sprintf("%d projects", r.Listing.Projects), r.Listing.All)
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d requests/s for %.0f s, %d errors\n", r.Rate, r.Seconds, r.Errors)
	return err
}

// apiMix is what is read, and how often out of the sum of all shares. The
// paths are about one of the projects with a repository.
var apiMix = []struct {
	name  string
	share int
	path  string // %d is the project, %s the group
}{
	{"project", 25, "projects/%[1]d"},
	{"projects", 10, "projects?per_page=20"},
	{"branch", 15, "projects/%[1]d/repository/branches/main"},
	{"file", 10, "projects/%[1]d/repository/files/deploy%%2Fapp.yaml?ref=main"},
	{"commits", 5, "projects/%[1]d/repository/commits?per_page=20"},
	{"tree", 5, "projects/%[1]d/repository/tree"},
	{"pushes", 5, "projects/%[1]d/pushes"},
	{"group", 10, "groups/%[2]s"},
	{"group projects", 5, "groups/%[2]s/projects?per_page=20"},
	{"user", 10, "user"},
}

// withRepository is how many projects are pushed to.
const withRepository = 5

func benchAPI(ctx context.Context, env *environment, source *sourceFlags, opts benchAPIOptions) (_ apiResult, err error) {
	forge, err := newBenchForge(ctx, env, source)
	if err != nil {
		return apiResult{}, err
	}
	defer func() { err = errors.Join(err, forge.close(ctx)) }()
	env.warnf("make %d projects", opts.projects)
	pushed, err := forge.seedProjects(ctx, opts.projects)
	if err != nil {
		return apiResult{}, err
	}
	web, err := forge.source.httpClient()
	if err != nil {
		return apiResult{}, err
	}
	defer web.CloseIdleConnections()
	l := &load{forge: forge, web: web, projects: pushed}
	if err := l.warmUp(ctx); err != nil {
		return apiResult{}, err
	}
	env.warnf("send %d requests per second for %s", opts.rate, opts.duration)
	result := l.run(ctx, opts.rate, opts.duration)
	if err := ctx.Err(); err != nil {
		return apiResult{}, context.Cause(ctx)
	}
	if result.Errors > 0 {
		env.warnf("the first error: %v", result.firstError)
	}
	env.warnf("list %d projects %d times", opts.projects, opts.rounds)
	var pages, wholes []time.Duration
	for range opts.rounds {
		page, whole, err := l.listProjects(ctx, opts.projects)
		if err != nil {
			return apiResult{}, err
		}
		pages, wholes = append(pages, page...), append(wholes, whole)
	}
	result.Listing.Projects = opts.projects
	result.Listing.Page, result.Listing.All = latencyOf(pages), latencyOf(wholes)
	return result, nil
}

// seedProjects makes the projects and pushes a small repository to some.
func (b *benchForge) seedProjects(ctx context.Context, n int) (pushed []int64, err error) {
	dir := filepath.Join(b.dir, "seed")
	if err := os.MkdirAll(filepath.Join(dir, "deploy"), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "deploy", "app.yaml"), []byte("kind: ConfigMap\n"), 0o600); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"}, {"add", "-A"},
		append(slices.Clone(benchAuthor), "commit", "-q", "-m", "first"),
	} {
		if _, err := b.git(ctx, dir, args...); err != nil {
			return nil, err
		}
	}
	for i := range n {
		project, err := b.createProject(ctx, b.group, fmt.Sprintf("project-%04d", i))
		if err != nil {
			return nil, err
		}
		if i >= withRepository {
			continue
		}
		if _, err := b.git(ctx, dir, "push", "-q", project.CloneURL, "main"); err != nil {
			return nil, err
		}
		pushed = append(pushed, project.ID)
	}
	return pushed, nil
}

// benchAuthor are git's options that make a commit anywhere.
var benchAuthor = []string{"-c", "user.name=Tidelock bench", "-c", "user.email=bench@tidelock.invalid", "-c", "commit.gpgsign=false"}

// A load sends requests.
type load struct {
	forge    *benchForge
	web      *http.Client
	projects []int64
}

// maxWaiting bounds the requests that wait for an answer.
const maxWaiting = 1000

// get reads one answer to its end.
func (l *load) get(ctx context.Context, path string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, l.forge.source.URL+"/api/v4/"+path, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Private-Token", l.forge.source.Token.Reveal())
	answer, err := l.web.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, answer.Status)
	}
	return nil
}

func (l *load) path(pattern string, i int) string {
	return fmt.Sprintf(pattern+"%[3]s", l.projects[i%len(l.projects)], l.forge.name, "")
}

func (l *load) warmUp(ctx context.Context) error {
	for _, q := range apiMix {
		if err := l.get(ctx, l.path(q.path, 0)); err != nil {
			return err
		}
	}
	return nil
}

// run sends requests when they are due, until the time is over or ctx is done,
// and waits for the answers.
func (l *load) run(ctx context.Context, rate int, duration time.Duration) apiResult {
	result := apiResult{Rate: rate, Seconds: duration.Seconds(), Requests: map[string]latency{}}
	shares := make([]int, len(apiMix))
	for i, q := range apiMix {
		shares[i] = q.share
	}
	deck := deal(shares)
	var (
		mu      sync.Mutex
		times   = map[int][]time.Duration{}
		sending sync.WaitGroup
		waiting = make(chan struct{}, maxWaiting)
	)
	note := func(q int, took time.Duration, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			times[q] = append(times[q], took)
			return
		}
		if result.Errors++; result.firstError == nil {
			result.firstError = err
		}
	}
	started := time.Now()
	total := int(float64(rate) * duration.Seconds())
	for i := range total {
		due := started.Add(time.Duration(i) * time.Second / time.Duration(rate))
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(due)):
		}
		if ctx.Err() != nil {
			break
		}
		q := deck[i%len(deck)]
		select {
		case waiting <- struct{}{}:
		default:
			note(q, 0, errors.New("too many requests wait for an answer"))
			continue
		}
		sending.Go(func() {
			defer func() { <-waiting }()
			err := l.get(ctx, l.path(apiMix[q].path, i))
			note(q, time.Since(due), err)
		})
	}
	sending.Wait()
	var all []time.Duration
	for i, q := range apiMix {
		result.Requests[q.name] = latencyOf(times[i])
		all = append(all, times[i]...)
	}
	result.All = latencyOf(all)
	return result
}

// deal makes a deck of a mix: each index as often as its share says, spread out.
func deal(shares []int) []int {
	var deck []int
	for left := true; left; {
		left = false
		for i, share := range shares {
			if count(deck, i) < share {
				deck, left = append(deck, i), true
			}
		}
	}
	return deck
}

func count(list []int, v int) int {
	n := 0
	for _, x := range list {
		if x == v {
			n++
		}
	}
	return n
}

// listProjects lists all projects of the group, page after page.
func (l *load) listProjects(ctx context.Context, n int) (pages []time.Duration, whole time.Duration, err error) {
	began := time.Now()
	for page := 1; (page-1)*100 < n; page++ {
		sent := time.Now()
		if err := l.get(ctx, fmt.Sprintf("groups/%s/projects?per_page=100&page=%d", l.forge.name, page)); err != nil {
			return nil, 0, err
		}
		pages = append(pages, time.Since(sent))
	}
	return pages, time.Since(began), nil
}
