package main

import (
	"io"
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
