package main

import (
	"io"
	"strings"
	"testing"
	"time"
)

// quiet is an environment that names no server.
func quiet() *environment {
	return &environment{stdout: io.Discard, stderr: io.Discard, getenv: func(string) string { return "" }}
}

// BenchmarkAPI is "tidelock bench api", in small.
func BenchmarkAPI(b *testing.B) {
	for b.Loop() {
		result, err := benchAPI(b.Context(), quiet(), &sourceFlags{}, benchAPIOptions{rate: 200, duration: 5 * time.Second, projects: 100, rounds: 2})
		if err != nil {
			b.Fatal(err)
		}
		if result.Errors > 0 {
			b.Errorf("%d requests failed, the first with %v", result.Errors, result.firstError)
		}
		b.ReportMetric(result.All.P50, "p50-ms")
		b.ReportMetric(result.All.P99, "p99-ms")
		b.ReportMetric(result.Listing.Page.P50, "page-ms")
	}
}

// BenchmarkGit is "tidelock bench git", in small.
func BenchmarkGit(b *testing.B) {
	for b.Loop() {
		result, err := benchGit(b.Context(), quiet(), &sourceFlags{}, benchGitOptions{files: 1000, rounds: 3})
		if err != nil {
			b.Fatal(err)
		}
		for name, side := range result.Sides {
			b.ReportMetric(side.CloneRatio, name+"-clone-ratio")
			b.ReportMetric(side.PushRatio, name+"-push-ratio")
		}
	}
}

// BenchmarkRegistry is "tidelock bench registry", in small.
func BenchmarkRegistry(b *testing.B) {
	for b.Loop() {
		result, err := benchRegistry(b.Context(), quiet(), &sourceFlags{}, benchRegistryOptions{rounds: 3, clients: 20, duration: 5 * time.Second, large: 16})
		if err != nil {
			b.Fatal(err)
		}
		if result.Load.Errors > 0 {
			b.Errorf("%d acts failed, the first with %v", result.Load.Errors, result.Load.firstError)
		}
		for _, shape := range result.Shapes {
			name := strings.ReplaceAll(shape.Shape, " ", "")
			b.ReportMetric(shape.Push.Ratio, name+"-push-ratio")
			b.ReportMetric(shape.Pull.Ratio, name+"-pull-ratio")
		}
		b.ReportMetric(result.Load.PerSecond, "acts/s")
		b.ReportMetric(result.Load.All.P99, "p99-ms")
	}
}
