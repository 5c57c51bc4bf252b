package gitlabapi_test

import (
	"net/http"
	"strconv"
	"testing"

	"tidelock.dev"
)

// clientBuilds asks what came of packaging a delivery repository; no client
// but ours knows the route.
func clientBuilds(t *testing.T, w *world) {
	project := w.project(w.group("deliveries", tidelock.Private), "fleet", tidelock.Private)
	commit := w.push(project, map[string]string{"README.md": "x"})
	heads, err := w.forge.BuildLog().UndeliveredHeads(t.Context(), project.ID, 10)
	must(t, err)
	if len(heads) == 0 || heads[0].Commit != commit {
		t.Fatalf("undelivered are %+v", heads)
	}
	digest := tidelock.Digest("sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	_, err = w.forge.BuildLog().RecordBuilds(t.Context(), heads[0], []tidelock.Build{
		{Application: "api", Image: "api", State: tidelock.StatusSuccess, Digest: digest, Tags: []string{"latest"}, Push: heads[0].Push},
		{Application: "web", Image: "web", State: tidelock.StatusFailed, Findings: []tidelock.Finding{
			{Check: "schema", Path: "web/a.yaml", Line: 3, Message: `unknown field "spec.replica"`},
			{Check: "secrets", Message: "a secret in clear", Warning: true},
		}},
	})
	must(t, err)

	type build struct {
		Ref, Commit, Status string
		Application, Image  *string
		Digest              *tidelock.Digest
		Tags                []string
		Findings            []struct {
			Check, Level, Message string
			Path                  *string
			Line                  *int
		}
	}
	path := "/projects/" + strconv.Itoa(int(project.ID)) + "/deliveries"
	var all []build
	w.ask(http.MethodGet, path, "", http.StatusOK, &all)
	if len(all) != 2 || *all[0].Application != "web" || all[1].Commit != string(commit) || *all[1].Digest != digest ||
		*all[1].Image != "deliveries/fleet/api" || len(all[1].Tags) != 1 || all[1].Findings == nil {
		t.Fatalf("the builds are %+v", all)
	}
	findings := all[0].Findings
	if all[0].Status != "failed" || all[0].Digest != nil || len(findings) != 2 || findings[0].Level != "fail" || *findings[0].Line != 3 ||
		findings[1].Level != "warn" || findings[1].Path != nil || findings[1].Line != nil {
		t.Errorf("the failed build is %+v", all[0])
	}
	for query, want := range map[string]int{
		"?application=api": 1, "?status=failed": 1, "?digest=" + string(digest): 1, "?ref=refs/heads/other": 0, "?commit=" + string(commit) + "&latest=true": 2,
	} {
		var some []build
		w.ask(http.MethodGet, path+query, "", http.StatusOK, &some)
		if len(some) != want || some == nil {
			t.Errorf("%s: got %+v, want %d", query, some, want)
		}
	}
	w.ask(http.MethodGet, path+"?status=running", "", http.StatusBadRequest, nil)
}
