package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/e2e"
)

// One push changes 100 Kustomizations at once: in the end the forge knows of
// each what the API server knows.
func TestObserveManyAtOnce(t *testing.T) { observeMany(t, 100, 3*time.Second) }

// TestSoakObserveMany is the same with 1,000; its control plane needs minutes.
func TestSoakObserveMany(t *testing.T) {
	if os.Getenv("TIDELOCK_SOAK") == "" {
		t.Skip("set TIDELOCK_SOAK, or run make soak")
	}
	observeMany(t, 1000, 30*time.Second)
}

// observeMany also says how much the agent needs for it, which nothing here
// depends on.
func observeMany(t *testing.T, appliers int, idle time.Duration) {
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	f.Trust(ns)
	p := f.Project("team/many", "public")
	p.Grant()
	commit := p.Push("main", manyObjects("one"))
	f.Source(ns, "many", p, e2e.Branch("main"))
	f.WaitServed(ns, "many")
	began := time.Now()
	work := make(chan int)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for i := range work {
				k := &kustomizev1.Kustomization{
					ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprint("app-", i)},
					Spec: kustomizev1.KustomizationSpec{
						Interval: metav1.Duration{Duration: time.Hour}, Path: "./deploy", Prune: true,
						TargetNamespace: ns, NamePrefix: fmt.Sprintf("app-%d-", i),
						SourceRef: kustomizev1.CrossNamespaceSourceReference{Kind: sourcev1.GitRepositoryKind, Name: "many"},
					},
				}
				if err := f.Cluster.Client.Create(t.Context(), k); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range appliers {
		work <- i
	}
	close(work)
	group.Wait()
	limit := time.Minute + time.Duration(appliers)*time.Second
	awaitSuccess(t, f, p, commit, appliers, limit)
	t.Logf("%d Kustomizations made, applied and reported: %s", appliers, time.Since(began).Round(time.Millisecond))

	told, cpu, peak := agentMetric(t, f, "tidelock_agent_observations_total"), processTime(t, f.PID(e2e.Agent)), 0.0
	began = time.Now()
	commit = p.Push("main", manyObjects("two"))
	ctx, done := context.WithCancel(t.Context())
	group.Go(func() {
		for ctx.Err() == nil {
			peak = max(peak, residentMB(t, f.PID(e2e.Agent)))
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	awaitSuccess(t, f, p, commit, appliers, limit)
	took := time.Since(began)
	done()
	group.Wait()
	told = agentMetric(t, f, "tidelock_agent_observations_total") - told
	cpu = processTime(t, f.PID(e2e.Agent)) - cpu
	t.Logf("all changed by one push: %s; %.0f observations, %.0f per second; agent: %.0f MB at most, %s of CPU",
		took.Round(time.Millisecond), told, told/took.Seconds(), peak, cpu)

	// What the API server says must be what was reported; awaitSuccess has seen
	// one rollout of each.
	var list kustomizev1.KustomizationList
	if err := f.Cluster.Client.List(t.Context(), &list, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != appliers {
		t.Errorf("the API server has %d Kustomizations", len(list.Items))
	}
	for _, k := range list.Items {
		if !strings.HasSuffix(k.Status.LastAppliedRevision, commit) || !apimeta.IsStatusConditionTrue(k.Status.Conditions, meta.ReadyCondition) {
			t.Errorf("%s was reported as rolled out, and has %q", k.Name, k.Status.LastAppliedRevision)
		}
	}

	told, cpu = agentMetric(t, f, "tidelock_agent_observations_total"), processTime(t, f.PID(e2e.Agent))
	time.Sleep(idle)
	told = agentMetric(t, f, "tidelock_agent_observations_total") - told
	cpu = processTime(t, f.PID(e2e.Agent)) - cpu
	t.Logf("at rest for %s: %.0f observations, %.2f%% of a CPU, %.0f MB", idle, told, 100*cpu.Seconds()/idle.Seconds(), residentMB(t, f.PID(e2e.Agent)))
}

// manyObjects is what each of many Kustomizations brings: something to be
// seen, and something to be read.
func manyObjects(value string) map[string]string {
	files := e2e.ConfigMap("settings", value)
	files["deploy/web.yaml"] = fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web, annotations: {value: %q}}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "example.org/web:1"}]}
`, value)
	return files
}

// awaitSuccess waits until each applier has rolled a commit out.
func awaitSuccess(t *testing.T, f *e2e.Forge, p *e2e.Project, commit string, appliers int, within time.Duration) {
	t.Helper()
	e2e.Eventually(t, within, func(ctx context.Context) error {
		seen := make(map[string]bool)
		var problem error
		for page := 1; ; page++ {
			var rollouts []struct {
				Applier, State, Message string
			}
			path := fmt.Sprintf("projects/%d/rollouts?sha=%s&per_page=100&page=%d", p.ID, commit, page)
			if err := f.API(ctx, http.MethodGet, path, nil, &rollouts); err != nil {
				return err
			}
			for _, r := range rollouts {
				if seen[r.Applier] {
					return fmt.Errorf("two rollouts of %s", r.Applier)
				}
				seen[r.Applier] = true
				if r.State != "success" {
					problem = fmt.Errorf("%s is %s: %s", r.Applier, r.State, r.Message)
				}
			}
			if len(rollouts) < 100 {
				break
			}
		}
		if len(seen) != appliers {
			return fmt.Errorf("%d rollouts, want %d", len(seen), appliers)
		}
		if problem != nil {
			// Asking is work for the same two cores.
			time.Sleep(200 * time.Millisecond)
		}
		return problem
	})
}

// agentMetric reads a counter of the agent's.
func agentMetric(t *testing.T, f *e2e.Forge, name string) float64 {
	t.Helper()
	response, err := http.Get("http://" + f.Health + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal(errors.New("the agent has no metric " + name))
	return 0
}
