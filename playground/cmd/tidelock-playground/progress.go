package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"tidelock.dev/playground/stack"
)

// A progress shows the steps of a start: one line each when it ends, and on a
// terminal the running one with its time. Elsewhere the begin of a step is a
// line as well, so that a log shows what it waits for.
type progress struct {
	out   io.Writer
	width int // of the terminal; 0 for none

	mu    sync.Mutex
	began map[string]bool
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, began: map[string]bool{}}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.width = 80
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			p.width = w
		}
	}
	return p
}

func (p *progress) show(e stack.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e.State {
	case stack.Begun, stack.Working:
		if p.width > 0 {
			p.live(e)
		} else if !p.began[e.Step] {
			p.began[e.Step] = true
			fmt.Fprintf(p.out, "  …  %s\n", e.Step)
		}
	case stack.Done:
		p.line("ok", e)
	case stack.Found:
		e.Note = "in the cache"
		p.line("ok", e)
	case stack.Failed:
		e.Note = "failed"
		p.line("!!", e)
	}
}

func (p *progress) line(mark string, e stack.Event) {
	text := fmt.Sprintf("  %s %-30s %8s", mark, e.Step, elapsed(e.Elapsed))
	if e.Note != "" {
		text += "  " + e.Note
	}
	if p.width > 0 {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	fmt.Fprintln(p.out, text)
}

func (p *progress) live(e stack.Event) {
	text := []rune(fmt.Sprintf("  …  %-30s %8s  %s", e.Step, elapsed(e.Elapsed), strings.TrimSpace(e.Note)))
	fmt.Fprintf(p.out, "\r\x1b[K%s", string(text[:min(len(text), p.width-1)]))
}

func elapsed(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}
