package health_test

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"tidelock.dev"

	"tidelock.dev/internal/health"
)

// crowd puts four objects for each of n owners into a cluster, of which two
// have a status, and has them followed.
func crowd(b *testing.B, c *cluster, n int) (names []string, refs [][]health.Ref) {
	b.Helper()
	for i := range n {
		name := fmt.Sprintf("app-%04d", i)
		c.put(b, deployment("shop", name, 1, 1))
		c.put(b, fmt.Sprintf(widget, name, 1))
		c.put(b, fmt.Sprintf(`{apiVersion: v1, kind: ConfigMap, metadata: {namespace: shop, name: %s}}`, name))
		c.put(b, fmt.Sprintf(`{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: %s}}`, name))
		names = append(names, "Kustomization/flux-system/"+name)
		refs = append(refs, []health.Ref{
			ref("apps/v1", "Deployment", "shop", name), ref("example.org/v1", "Widget", "shop", name),
			ref("v1", "ConfigMap", "shop", name), ref("rbac.authorization.k8s.io/v1", "ClusterRole", "", name),
		})
	}
	return names, refs
}

const widget = `{apiVersion: example.org/v1, kind: Widget, metadata: {namespace: shop, name: %s, generation: %d}, status: {conditions: [{type: Ready, status: "True"}]}}`

// allSettled waits until every owner's objects are healthy, or half of them
// are not.
func allSettled(b *testing.B, f *follower, names []string, want tidelock.Health) {
	b.Helper()
	for _, name := range names {
		for {
			if r := f.Health(name); r.Settled && r.Health == want {
				break
			}
			select {
			case <-f.told:
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// BenchmarkChanges has the objects of all owners change at once, and back.
// What the API server does for that is in the same process.
func BenchmarkChanges(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("owners=%d", n), func(b *testing.B) {
			c := newCluster(b)
			names, refs := crowd(b, c, n)
			f := follow(b, c)
			started := time.Now()
			for i := range names {
				f.Follow(names[i], refs[i])
			}
			allSettled(b, f, names, tidelock.HealthHealthy)
			start := time.Since(started)
			generation := 1
			b.ReportAllocs()
			reads, notifications := c.asked("get deployments"), f.notified.Load()
			for b.Loop() {
				for _, available := range []int{0, 1} {
					generation++
					for _, name := range names {
						c.put(b, deployment("shop", name[len("Kustomization/flux-system/"):], generation, available))
					}
					want := tidelock.HealthProgressing
					if available > 0 {
						want = tidelock.HealthHealthy
					}
					allSettled(b, f, names, want)
				}
			}
			b.ReportMetric(float64(start.Milliseconds()), "start-ms")
			changes := float64(2 * n * b.N)
			b.ReportMetric(float64(f.notified.Load()-notifications)/changes, "notifications/change")
			b.ReportMetric(changes/b.Elapsed().Seconds(), "changes/s")
			b.ReportMetric(float64(c.asked("get deployments")-reads)/changes, "reads/change")
		})
	}
}

// BenchmarkMemory measures what a followed object takes.
func BenchmarkMemory(b *testing.B) {
	const n = 5000
	c := newCluster(b)
	names, refs := crowd(b, c, n)
	f := follow(b, c)
	for b.Loop() {
		before := heap()
		for i := range names {
			f.Follow(names[i], refs[i])
		}
		allSettled(b, f, names, tidelock.HealthHealthy)
		b.ReportMetric((heap()-before)/(4*n), "B/object")
		for _, name := range names {
			f.Forget(name)
		}
	}
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// BenchmarkIdle measures the CPU time of a second in which nothing happens,
// with 4,000 objects followed.
func BenchmarkIdle(b *testing.B) {
	c := newCluster(b)
	names, refs := crowd(b, c, 1000)
	f := follow(b, c)
	for i := range names {
		f.Follow(names[i], refs[i])
	}
	allSettled(b, f, names, tidelock.HealthHealthy)
	runtime.GC()
	before, started := cpu(b), time.Now()
	for b.Loop() {
		time.Sleep(2 * time.Second)
	}
	b.ReportMetric(float64(cpu(b)-before)/float64(time.Since(started))*100, "cpu-%")
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
