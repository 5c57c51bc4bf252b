package e2e_test

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidelock.dev/playground/e2e"
)

// BenchmarkIdle measures what server and agent hold and burn while nothing is
// pushed, with 100 sources served: memory is the resident set, CPU is over ten
// seconds.
func BenchmarkIdle(b *testing.B) {
	const projects, perProject = 10, 10
	f := e2e.StartForge(b, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(b)
	f.Trust(ns)
	var names []string
	for i := range projects {
		p := f.Project(fmt.Sprintf("team/site-%d", i), "public")
		p.Push("main", e2e.ConfigMap("site", "one"))
		for j := range perProject {
			name := fmt.Sprintf("site-%d-%d", i, j)
			f.Source(ns, name, p, e2e.Branch("main"))
			names = append(names, name)
		}
	}
	for _, name := range names {
		f.WaitServed(ns, name)
	}
	for b.Loop() {
		for _, process := range []string{e2e.Server, e2e.Agent} {
			pid := f.PID(process)
			before := processTime(b, pid)
			time.Sleep(10 * time.Second)
			b.ReportMetric(float64(processTime(b, pid)-before)/float64(10*time.Second)*100, process+"-cpu-%")
			b.ReportMetric(residentMB(b, pid), process+"-MB")
		}
	}
}

func residentMB(b testing.TB, pid int) float64 {
	b.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	b.Fatalf("no VmRSS of process %d", pid)
	return 0
}

// processTime is the CPU time, user and system, that a process has used.
func processTime(b testing.TB, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may hold spaces
	fields := strings.Fields(rest)
	var ticks int
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ is 100 on every Linux that Go supports
}
