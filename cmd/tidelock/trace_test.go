package main

import (
	"strings"
	"testing"
)

func TestTraceSaysOnceThatAllIsWell(t *testing.T) {
	for _, tc := range []struct{ state, want string }{
		{"success", "\nproduction: Kustomization/shop/web on prod  live\n"},
		{"failed", "\nproduction: Kustomization/shop/web on prod  failed\n  what Flux said\n"},
	} {
		row := timelineRow{Places: []placeRow{{Agent: "prod", Applier: "Kustomization/shop/web", Environment: "production", State: tc.state, Message: "what Flux\nsaid"}}}
		var out strings.Builder
		if err := row.table(&out); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(out.String(), tc.want) {
			t.Errorf("got\n%s\nwant at its end\n%s", out.String(), tc.want)
		}
	}
}
