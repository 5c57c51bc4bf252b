package forge_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

// TestKeptCharts: Flux packages a chart in Git only when its version changes,
// if it is not told otherwise, and calls every other commit applied.
func TestKeptCharts(t *testing.T) {
	t.Parallel()
	const by = " chart=./charts/web"
	for _, tt := range []struct{ name, story string }{
		{"the version is kept", `
			A 1.0.0 one` + by + `
			= A success*
			B 1.0.0 two` + by + `
			= A success, B failed* the chart in ./charts/web changed since A and is still version 1.0.0
			C 1.0.0 two` + by + `
			= A success, B failed, C failed* the chart in ./charts/web changed since A
			D 1.0.1 two` + by + `
			= A success, B failed, C failed, D success*`},
		{"the change is taken back", `
			A 1.0.0 one` + by + `
			B 1.0.0 two` + by + `
			C 1.0.0 one` + by + `
			= A success, B failed, C success*`},
		{"only something else changes", `
			A 1.0.0 one` + by + `
			B 1.0.0 one` + by + ` beside
			= A success, B success*`},
		{"the first one is believed", `
			B 1.0.0 two` + by + `
			= B success*`},
		{"packaged with every commit", `
			A 1.0.0 one
			B 1.0.0 two
			= A success, B success*`},
		{"Flux is told to package every commit after all", `
			A 1.0.0 one` + by + `
			B 1.0.0 two` + by + `
			= A success, B failed*
			sees chart=
			= A success, B success*`},
		{"one after the other, seen together", `
			A 1.0.0 one` + by + `
			land B 1.0.0 two
			C 1.0.0 two` + by + ` outcomes=C:ready,B:ready,A:ready
			= A success, B superseded, C failed*`},
		{"the one before was not healthy yet", `
			A 1.0.0 one health=progressing` + by + `
			= A running*
			B 1.0.0 two` + by + `
			= A superseded, B failed*`},
		{"a chart that cannot be read", `
			A none one` + by + `
			B none two` + by + `
			= A success, B success*`},
		{"a folder that is not there", `
			A 1.0.0 one chart=elsewhere
			B 1.0.0 two chart=../../etc
			= A success, B success*`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			s.line("applier HelmRelease/shop/web")
			s.applier.Health = tidelock.HealthHealthy
			for line := range strings.Lines(strings.TrimSpace(tt.story)) {
				words := strings.Fields(line)
				switch words[0] {
				case "=", "sees":
					s.line(strings.TrimSpace(line))
					continue
				case "land":
					s.chart(words[1:])
					continue
				}
				s.chart(words)
				s.plan()
				seen := fmt.Sprintf("attempted=%s applied=%s state=ready", words[0], words[0])
				for _, word := range words[3:] {
					if strings.Contains(word, "=") {
						seen += " " + word
					}
				}
				s.line("fetched " + words[0])
				s.line("sees " + seen)
			}
		})
	}
}

// chart pushes a commit of a chart: its label, the version, what is in a
// template, and perhaps of a file beside it.
func (s *story) chart(words []string) {
	s.t.Helper()
	s.clock = s.clock.Add(time.Millisecond)
	chart := "name: web\nversion: " + words[1] + "\n"
	if words[1] == "none" {
		chart = "{"
	}
	web := s.tree("blob", "Chart.yaml", s.object(chart), "blob", "template.yaml", s.object(words[2]))
	root := s.tree("blob", "README.md", s.object(strings.Join(words[3:], " ")), "tree", "charts", s.tree("tree", "web", web))
	id := tidelock.CommitID(s.git(s.site, "commit-tree", root, "-m", words[0]))
	s.commits[words[0]], s.labels[id] = id, words[0]
	s.git(s.site, "update-ref", "refs/heads/main", string(id))
	_, err := s.Pushed(s.t.Context(), s.site.ID, s.root, []tidelock.RefName{"refs/heads/main"})
	s.ok(err)
}

// object writes a blob.
func (s *story) object(content string) string {
	return s.gitInput(s.site, content, "hash-object", "-w", "--stdin")
}

// tree writes a directory of entries, three words each.
func (s *story) tree(entries ...string) string {
	var list strings.Builder
	for i := 0; i < len(entries); i += 3 {
		mode := map[string]string{"blob": "100644", "tree": "040000"}[entries[i]]
		fmt.Fprintf(&list, "%s %s %s\t%s\n", mode, entries[i], entries[i+2], entries[i+1])
	}
	return s.gitInput(s.site, list.String(), "mktree")
}
