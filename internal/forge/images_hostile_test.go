package forge_test

import (
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// An expression that quotes to its end would quote the brackets that are put
// around it, too: it used to bring down the server when its retention was due.
func TestRetentionPatterns(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	a := w.mustPush(project, "app", "one", "v1")
	for _, pattern := range []string{`\Qv1`, `(`, `v1)|(v2`, `[`, `(?`} {
		_, err := w.SetRetention(t.Context(), w.root, project, forge.RetentionFields{Enabled: new(true), Remove: new(pattern)})
		if tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("remove %q: got %v, want invalid", pattern, err)
		}
		_, err = w.SetRetention(t.Context(), w.root, project, forge.RetentionFields{Keep: new(pattern)})
		if tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("keep %q: got %v, want invalid", pattern, err)
		}
		_, err = w.RemoveTags(t.Context(), w.root, project, a.Image, tidelock.Retention{Remove: pattern}, false)
		if tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("remove tags %q: got %v, want invalid", pattern, err)
		}
	}
	if _, err := w.RemoveTags(t.Context(), w.root, project, a.Image, tidelock.Retention{Remove: `\Qv1\E`}, true); err != nil {
		t.Errorf("an expression that ends its quote: got %v", err)
	}
}
