package console

import (
	"fmt"
	"html/template"
	"strings"
	"time"
	"unicode"
)

// functions are what templates may call.
var functions = template.FuncMap{
	"plain": plain,
	"short": short,
	"size":  size,
	"ago":   ago,
	"took":  took,
	"stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"long":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"count": count,
	"plus":  func(a, b int) int { return a + b },
}

// plain makes what others named safe to look at: characters that are invisible
// or turn the text around are shown as a mark instead of being obeyed.
// Escaping for HTML is html/template's part.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// short is the name of a commit, or the digest of an artifact, as people write
// it.
func short(revision string) string {
	const kept = 8
	algorithm, hash, ok := strings.Cut(revision, ":")
	if !ok {
		return revision[:min(len(revision), kept)]
	}
	return algorithm + ":" + hash[:min(len(hash), kept)]
}

// size is a number of bytes in the largest unit that leaves a whole one.
func size(bytes int64) string {
	if bytes < 1000 {
		return fmt.Sprintf("%d B", bytes)
	}
	amount, unit := float64(bytes)/1000, 0
	units := []string{"kB", "MB", "GB", "TB"}
	for amount >= 1000 && unit < len(units)-1 {
		amount, unit = amount/1000, unit+1
	}
	return fmt.Sprintf("%.1f %s", amount, units[unit])
}

// ago is how long before now a time was, in one unit.
func ago(t, now time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "never"
	case d < 5*time.Second:
		return "just now"
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

// took is a span between moments in the life of a push.
func took(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
