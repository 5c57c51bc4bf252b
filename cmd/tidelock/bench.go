package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"tidelock.dev"
)

type benchPushOptions struct {
	count      int
	kubeconfig string
	receiver   string
	timeout    time.Duration
	keep       bool
}

func newBenchCommand(env *environment) *cobra.Command {
	cmd := parent("bench", "Measure an installation", "Each measurement makes what it needs and removes it in the end.")
	var source sourceFlags
	source.add(cmd)
	cmd.AddCommand(newBenchPushCommand(env, &source), newBenchAPICommand(env, &source), newBenchGitCommand(env, &source),
		newBenchRegistryCommand(env, &source), newBenchDeliveryCommand(env, &source))
	return cmd
}

func newBenchPushCommand(env *environment, source *sourceFlags) *cobra.Command {
	var opts benchPushOptions
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "push",
		Short: "Measure how long a push takes to reach the cluster, hop by hop",
		Long: `Push commits one after another and print how long each hop took, in
milliseconds since the server recorded the push:

  announced  the agent had the announcement
  called     its request to the Receiver left
  answered   the Receiver answered
  fetched    the GitRepository showed the commit
  applied    a watch saw the object

The baseline runs in between: a twin project with the same commits, whose
GitRepository carries the label tidelock.dev/trigger=none. The agent must leave
it alone (flux.selector: "tidelock.dev/trigger!=none"); the bench itself calls a
Receiver of its own as soon as the twin's push is accepted, and direct.applied
counts from that call. All polling intervals are an hour. The bench fails if
anything else triggered either side.

It needs a cluster with Flux and a connected agent, such as the playground's,
and makes a group and a namespace of its own, which it removes in the end.`,
		Example: `  . .playground/env && tidelock bench push --count 100
  tidelock bench push --count 20 -o json --receiver-url http://127.0.0.1:9292`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.count < 1 {
				return misusef("--count must be at least 1")
			}
			if opts.receiver == "" {
				opts.receiver = env.getenv("TIDELOCK_RECEIVER_URL")
			}
			if opts.receiver == "" {
				return misusef("no receiver URL: give --receiver-url, or source the env file of the playground")
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			result, err := benchPush(cmd.Context(), env, c, opts)
			if err != nil {
				return err
			}
			return output.print(env.stdout, result)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&opts.count, "count", 20, "pushes on each side")
	flags.StringVar(&opts.kubeconfig, "kubeconfig", "", "cluster to use (default: KUBECONFIG)")
	flags.StringVar(&opts.receiver, "receiver-url", "", "where notification-controller's receivers listen, as seen from here (default: TIDELOCK_RECEIVER_URL)")
	flags.DurationVar(&opts.timeout, "timeout", 30*time.Second, "how long one push may take")
	flags.BoolVar(&opts.keep, "keep", false, "leave the group and the namespace behind")
	output.add(cmd)
	return cmd
}

// A spread is what a hop took over all pushes, in milliseconds.
type spread struct {
	Min float64 `json:"min"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func spreadOf(times []time.Duration) spread {
	sorted := slices.Sorted(slices.Values(times))
	at := func(share float64) float64 {
		i := min(int(share*float64(len(sorted))), len(sorted)-1)
		return float64(sorted[i].Microseconds()) / 1000
	}
	return spread{Min: at(0), P50: at(0.50), P99: at(0.99)}
}

// pushResult is what the bench prints.
type pushResult struct {
	Count  int               `json:"count"`
	Hops   map[string]spread `json:"hops"`
	Direct map[string]spread `json:"direct"`
	Ratio  struct {
		AppliedP50 float64 `json:"applied_p50"`
	} `json:"ratio"`
}

var hopNames = []string{"announced", "called", "answered", "fetched", "applied"}

func (r pushResult) table(w io.Writer) error {
	t := newTable(w, "HOP", "MIN", "P50", "P99", "")
	row := func(name string, s spread, unit string) {
		t.row(name, fmt.Sprintf("%.1f", s.Min), fmt.Sprintf("%.1f", s.P50), fmt.Sprintf("%.1f", s.P99), unit)
	}
	for _, name := range hopNames {
		row(name, r.Hops[name], "ms")
	}
	row("direct.applied", r.Direct["applied"], "ms")
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d pushes on each side; p50 of applied is %.2f times that of direct.applied\n", r.Count, r.Ratio.AppliedP50)
	return err
}

func benchPush(ctx context.Context, env *environment, c *connection, opts benchPushOptions) (_ pushResult, err error) {
	bench, err := newPushBench(ctx, env, c, opts)
	if err != nil {
		return pushResult{}, err
	}
	defer func() {
		clean, stop := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer stop()
		err = errors.Join(err, bench.close(clean))
	}()
	return bench.run(ctx)
}

// run pushes to both sides in turn and then makes sure that each was triggered
// by whom it should have been, exactly as often as it was pushed to.
func (b *pushBench) run(ctx context.Context) (pushResult, error) {
	hops := map[string][]time.Duration{}
	var direct []time.Duration
	for i := range b.count {
		if i%10 == 0 {
			b.env.warnf("push %d of %d", i+1, b.count)
		}
		times, err := b.pushAnnounced(ctx, i+1)
		if err != nil {
			return pushResult{}, fmt.Errorf("push %d: %w", i+1, err)
		}
		for name, took := range times {
			hops[name] = append(hops[name], took)
		}
		took, err := b.pushDirect(ctx, i+1)
		if err != nil {
			return pushResult{}, fmt.Errorf("direct push %d: %w", i+1, err)
		}
		direct = append(direct, took)
	}
	if err := b.checkTriggers(ctx); err != nil {
		return pushResult{}, err
	}
	result := pushResult{Count: b.count, Hops: map[string]spread{}, Direct: map[string]spread{"applied": spreadOf(direct)}}
	for _, name := range hopNames {
		result.Hops[name] = spreadOf(hops[name])
	}
	result.Ratio.AppliedP50 = result.Hops["applied"].P50 / result.Direct["applied"].P50
	return result, nil
}

// pushAnnounced pushes to the side that Tidelock triggers and returns the time
// of every hop since the push was recorded.
func (b *pushBench) pushAnnounced(ctx context.Context, n int) (map[string]time.Duration, error) {
	ctx, stop := context.WithTimeout(ctx, b.timeout)
	defer stop()
	commit, err := b.announced.push(ctx, n)
	if err != nil {
		return nil, err
	}
	applied, err := b.announced.applied(ctx, n)
	if err != nil {
		return nil, err
	}
	a, err := b.announcement(ctx, commit)
	if err != nil {
		return nil, err
	}
	if a.Via != "receiver" {
		return nil, fmt.Errorf("commit %s was triggered by %s, not by the receiver: the figures would not compare", commit, cmp.Or(a.Via, "nothing"))
	}
	since := func(t *time.Time) time.Duration { return t.Sub(*a.AcceptedAt) }
	return map[string]time.Duration{
		"announced": since(a.AnnouncedAt),
		"called":    since(a.CalledAt),
		"answered":  since(a.AnsweredAt),
		"fetched":   since(a.FetchedAt),
		"applied":   since(&applied),
	}, nil
}

// pushDirect pushes to the twin, calls its Receiver at once, and returns how
// long after that call the object was there.
func (b *pushBench) pushDirect(ctx context.Context, n int) (time.Duration, error) {
	ctx, stop := context.WithTimeout(ctx, b.timeout)
	defer stop()
	if _, err := b.direct.push(ctx, n); err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.receiver+b.hook, nil)
	if err != nil {
		return 0, err
	}
	called := time.Now()
	resp, err := b.web.Do(req)
	if err != nil {
		return 0, fmt.Errorf("call the twin's receiver: %w", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("call the twin's receiver: %s", resp.Status)
	}
	applied, err := b.direct.applied(ctx, n)
	if err != nil {
		return 0, err
	}
	return applied.Sub(called), nil
}

// announcement waits until the record of a commit's announcement is complete.
func (b *pushBench) announcement(ctx context.Context, commit tidelock.CommitID) (announcementRow, error) {
	for {
		list, err := b.announcements(ctx, b.announced.project, commit)
		if err != nil {
			return announcementRow{}, err
		}
		for _, item := range list {
			a := item.value
			if a.Source == b.announced.source() && a.AcceptedAt != nil && a.AnnouncedAt != nil &&
				a.CalledAt != nil && a.AnsweredAt != nil && a.FetchedAt != nil {
				return a, nil
			}
		}
		select {
		case <-ctx.Done():
			return announcementRow{}, fmt.Errorf("the announcement of %s is not complete: %w", commit, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// checkTriggers fails unless each side was triggered once per push, and the
// twin never by Tidelock.
func (b *pushBench) checkTriggers(ctx context.Context) error {
	list, err := b.announcements(ctx, b.direct.project, "")
	if err != nil {
		return err
	}
	if len(list) > 0 {
		return fmt.Errorf("the twin was announced %d times: the agent's flux.selector must exclude tidelock.dev/trigger=none", len(list))
	}
	for _, side := range []*benchSide{b.announced, b.direct} {
		if got := side.triggers(); got != b.count {
			return fmt.Errorf("%s was triggered %d times for %d pushes: something else triggers it", side.name, got, b.count)
		}
	}
	return nil
}
