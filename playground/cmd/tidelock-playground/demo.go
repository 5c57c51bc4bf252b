package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"tidelock.dev/playground/sample"
	"tidelock.dev/playground/stack"
	"tidelock.dev/playground/supervisor"
)

func newDemoCommand(at *place) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Push a change, by Git and by the registry, and print the time of every hop to the cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := supervisor.Read(at.state); errors.Is(err, supervisor.ErrNotRunning) {
				return notReadyf("the playground is not running; start it with \"make up\"")
			} else if err != nil {
				return err
			}
			facts, err := stack.ReadFacts(at.state)
			if err != nil {
				return err
			}
			if !facts.Ready {
				return notReadyf("the playground is still starting")
			}
			for _, way := range []sample.Way{sample.ByGit, sample.ByImage} {
				if err := demo(cmd.Context(), facts, way, cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// demoTimeout is far beyond the seconds that a change takes at worst.
const demoTimeout = time.Minute

var messageLine = regexp.MustCompile(`(?m)^(\s*` + sample.GreetingKey + `:).*$`)

func demo(ctx context.Context, facts stack.Facts, way sample.Way, out io.Writer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, demoTimeout, fmt.Errorf("the change was not applied within %s", demoTimeout))
	defer cancel()
	forge, err := facts.Forge()
	if err != nil {
		return err
	}
	tree, err := forge.Clone(ctx, way.Project)
	if err != nil {
		return err
	}
	defer tree.Remove()

	message := "hello at " + time.Now().Format("15:04:05.000")
	greeting, err := os.ReadFile(filepath.Join(tree.Dir, way.File))
	if err != nil {
		return fmt.Errorf("%s has no greeting to change: %w", way.Project, err)
	}
	changed := messageLine.ReplaceAllString(string(greeting), "${1} "+message)
	if changed == string(greeting) {
		return fmt.Errorf("%s has no line %q to change", way.File, sample.GreetingKey)
	}
	commit, err := tree.Commit(ctx, "Say "+message, map[string]string{way.File: changed})
	if err != nil {
		return err
	}
	watching, err := watchGreeting(ctx, facts, way, message)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := tree.Push(ctx); err != nil {
		return err
	}
	pushed := time.Now()
	fmt.Fprintf(out, "pushed %s to %s: %s: %s\n\n", commit[:10], way.Project, sample.GreetingKey, message)
	applied, err := watching()
	if err != nil {
		return errors.Join(err, howFar(forge, way, commit))
	}
	announcement, err := awaitFetched(ctx, forge, way, commit)
	if err != nil {
		return err
	}
	return printHops(out, way, announcement, began, pushed, applied)
}

// watchGreeting watches the greeting in the cluster from now on; the returned
// function waits until it says message, and tells when that was seen.
func watchGreeting(ctx context.Context, facts stack.Facts, way sample.Way, message string) (wait func() (time.Time, error), err error) {
	config, err := facts.REST()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	watcher, err := client.CoreV1().ConfigMaps(way.Namespace).Watch(ctx, metav1.ListOptions{
		FieldSelector: "metadata.name=" + sample.GreetingName,
	})
	if err != nil {
		return nil, fmt.Errorf("watch the cluster: %w", err)
	}
	return func() (time.Time, error) {
		defer watcher.Stop()
		for event := range watcher.ResultChan() {
			seen := time.Now()
			if object, ok := event.Object.(*corev1.ConfigMap); ok && object.Data[sample.GreetingKey] == message {
				return seen, nil
			}
		}
		if ctx.Err() != nil {
			return time.Time{}, context.Cause(ctx)
		}
		return time.Time{}, errors.New("the cluster ended the watch; try again")
	}, nil
}

// howFar says, of a change that did not arrive, what became of it.
func howFar(forge *sample.Forge, way sample.Way, commit string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	all, err := forge.Announcements(ctx, way.Project, commit)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return errors.New("the server announced it to no agent; is the agent connected? See \"make status\"")
	}
	return fmt.Errorf("the announcement to %s is %s %s", all[0].Source, all[0].State, all[0].Message)
}

// awaitFetched waits for the server to hear what the cluster has shown
// already: observations follow the fact by milliseconds.
func awaitFetched(ctx context.Context, forge *sample.Forge, way sample.Way, commit string) (sample.Announcement, error) {
	for {
		all, err := forge.Announcements(ctx, way.Project, commit)
		if err != nil {
			return sample.Announcement{}, err
		}
		for _, a := range all {
			if a.Source == way.Source && a.FetchedAt != nil {
				return a, nil
			}
		}
		select {
		case <-ctx.Done():
			if len(all) == 0 {
				return sample.Announcement{}, errors.New("the change was applied, but the server announced it to no agent")
			}
			return all[0], fmt.Errorf("the change was applied, but the agent did not report that: state %s %s", all[0].State, all[0].Message)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// printHops prints when each hop was done, in milliseconds since the server
// had recorded what was announced.
func printHops(out io.Writer, way sample.Way, a sample.Announcement, began, pushed, applied time.Time) error {
	if a.AcceptedAt == nil {
		return errors.New("the server does not know when it accepted the push")
	}
	type hop struct {
		name string
		at   *time.Time
		what string
	}
	hops := []hop{
		{"accepted", a.AcceptedAt, "the server recorded the push"},
		{"announced", a.AnnouncedAt, "the agent heard of it"},
		{"called", a.CalledAt, "the agent called Flux's receiver"},
		{"answered", a.AnsweredAt, "the receiver answered"},
		{"fetched", a.FetchedAt, "the GitRepository shows the commit"},
		{"applied", &applied, "the cluster shows the change"},
	}
	if way == sample.ByImage {
		hops[0].what, hops[4].what = "the artifact is packaged, signed and recorded", "the OCIRepository has verified it"
		hops = append([]hop{{"pushed", &pushed, "git push was done"}}, hops...)
	}
	fmt.Fprintf(out, "  %-10s %10s\n", "HOP", "AFTER")
	for _, h := range hops {
		after := "-"
		if h.at != nil {
			after = fmt.Sprintf("%.1f ms", float64(h.at.Sub(*a.AcceptedAt).Microseconds())/1000)
		}
		fmt.Fprintf(out, "  %-10s %10s  %s\n", h.name, after, h.what)
	}
	fmt.Fprintf(out, "\nFlux was triggered through its %s; its own interval is an hour. git push took %d ms in all.\n\n", a.Via, pushed.Sub(began).Milliseconds())
	return nil
}
