package delivery_test

import (
	"fmt"
	"strings"
	"testing"
)

func TestCheckBoundsWhatAliasesStandFor(t *testing.T) {
	text := strings.Repeat("x", 1<<20)
	var object strings.Builder
	fmt.Fprintf(&object, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  a: &a %s\n", text)
	for i := range 50 {
		fmt.Fprintf(&object, "  b%d: *a\n", i)
	}
	for name, file := range map[string]string{
		"one object": object.String(),
		"one list": "apiVersion: v1\nkind: ConfigMapList\nx: &a {apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {a: " + text + "}}\n" +
			"items: [" + strings.Repeat("*a, ", 50) + "]\n",
		"many documents": strings.Repeat("apiVersion: example.org/v1\nkind: A\nmetadata: {name: a}\na: &a "+text[:10<<10]+
			"\nb: ["+strings.Repeat("*a, ", 700)+"]\n---\n", 15),
	} {
		t.Run(name, func(t *testing.T) {
			p := mk(t, map[string]string{"app/a.yaml": file}, "  checks: {duplicates: ignore}\n")
			if !p.Refused() || !strings.Contains(fmt.Sprint(p.Findings), "stands for too much") {
				t.Errorf("got findings %.1000q", p.Findings)
			}
		})
	}
}

func TestCheckTakesNoListsOfLists(t *testing.T) {
	const lists = 200
	p := mk(t, map[string]string{
		"app/a.yaml": strings.Repeat("{apiVersion: v1, kind: List, items: [", lists) + strings.Repeat("]}", lists),
	}, "")
	if len(p.Findings) != 1 || !strings.Contains(p.Findings[0].Message, "in another list") {
		t.Errorf("got findings %.1000q", p.Findings)
	}
}
