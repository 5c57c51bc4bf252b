package agentserver

import (
	"testing"

	"tidelock.dev"
)

func TestDue(t *testing.T) {
	const a, b, none = tidelock.CommitID("aaaa"), tidelock.CommitID("bbbb"), tidelock.CommitID("")
	for _, test := range []struct {
		name     string
		head     tidelock.CommitID // none: gone
		revision tidelock.CommitID
		told     bool
		commit   tidelock.CommitID
		state    tidelock.AnnouncementState // of the record; "" for none
		want     bool
	}{
		{"new source without artifact", a, none, false, none, "", true},
		{"new source at the head", a, a, false, none, "", false},
		{"new source behind", a, b, false, none, "", true},
		{"announced, under way", a, b, true, a, tidelock.Delivered, false},
		{"announced, converged", a, a, true, a, tidelock.Converged, false},
		{"moved on", b, a, true, a, tidelock.Converged, true},
		{"moved on before it was fetched", b, none, true, a, tidelock.Sent, true},
		{"moved back before it was fetched", a, a, true, b, tidelock.Handled, true},
		{"Flux found the head by itself", b, b, true, a, tidelock.Converged, false},
		{"Flux found the head by itself, nothing known", b, b, true, a, "", false},
		{"unfinished, then forgotten by the agent", a, a, false, none, tidelock.Delivered, true},
		{"never was there", none, none, false, none, "", false},
		{"gone while away", none, a, false, none, "", true},
		{"gone", none, a, true, a, tidelock.Converged, true},
		{"gone, said", none, a, true, none, tidelock.Gone, false},
		{"back where it was", a, a, true, none, tidelock.Gone, true},
	} {
		s := &source{
			revision: tidelock.Revision{Commit: test.revision},
			told:     test.told, goal: tidelock.Goal{Commit: test.commit},
		}
		if test.state != "" {
			s.record = &tidelock.Announcement{State: test.state}
		}
		w := wanted{project: 1, served: true, settled: true, gone: test.head == "", head: tidelock.Head{Commit: test.head}}
		if got := s.due(w); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
		w.served = false
		if s.due(w) {
			t.Errorf("%s: due although not served", test.name)
		}
		w.served, w.settled = true, false
		if s.due(w) {
			t.Errorf("%s: due although nothing is settled", test.name)
		}
	}
}

// TestDueOfArtifacts has what differs from commits: the same artifact under
// another tag is no news, and of a chart only the version can be compared.
func TestDueOfArtifacts(t *testing.T) {
	goal := func(tag string, digest tidelock.Digest) tidelock.Goal {
		return tidelock.Goal{Ref: tidelock.TagRef(tag), Digest: digest}
	}
	digest := func(d tidelock.Digest) tidelock.Revision { return tidelock.Revision{Digest: d} }
	version := func(v string) tidelock.Revision { return tidelock.Revision{Version: v} }
	none := tidelock.Goal{}
	for _, test := range []struct {
		name     string
		head     tidelock.Goal
		revision tidelock.Revision
		told     bool
		goal     tidelock.Goal
		want     bool
	}{
		{"new source", goal("latest", "a"), tidelock.Revision{}, false, none, true},
		{"new source that has it", goal("latest", "a"), digest("a"), false, none, false},
		{"the tag moved", goal("latest", "b"), digest("a"), true, goal("latest", "a"), true},
		{"another tag of the same artifact", goal("1.1.0", "a"), digest("a"), true, goal("1.0.0", "a"), false},
		{"one commit made two artifacts", tidelock.Goal{Commit: "c", Digest: "b"}, digest("a"), true, tidelock.Goal{Commit: "c", Digest: "a"}, true},
		{"two commits made one artifact", tidelock.Goal{Commit: "d", Digest: "a"}, digest("a"), true, tidelock.Goal{Commit: "c", Digest: "a"}, false},
		{"the tag was removed", none, digest("a"), true, goal("latest", "a"), true},
		{"the tag was removed, said", none, digest("a"), true, none, false},
		{"the tag is back", goal("latest", "a"), digest("a"), true, none, true},
		{"new chart", goal("1.0.0", "a"), tidelock.Revision{}, false, none, true},
		{"chart that Flux has", goal("1.0.0", "a"), version("1.0.0"), false, none, false},
		{"new version of a chart", goal("1.1.0", "b"), version("1.0.0"), true, goal("1.0.0", "a"), true},
		{"version that Flux found by itself", goal("1.1.0", "b"), version("1.1.0"), true, goal("1.0.0", "a"), false},
	} {
		s := &source{revision: test.revision, told: test.told, goal: test.goal}
		w := wanted{project: 1, served: true, settled: true, gone: test.head.None(), head: tidelock.Head{
			Ref: test.head.Ref, Commit: test.head.Commit, Digest: test.head.Digest,
		}}
		if got := s.due(w); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

func TestPathOf(t *testing.T) {
	urls, err := tidelock.ParseURLSet("https://forge.example", "ssh://git@forge.example:2222")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		kind tidelock.SourceKind
		url  string
		want string
	}{
		{tidelock.GitRepository, "https://forge.example/Team/Site.git", "team/site"},
		{tidelock.GitRepository, "ssh://git@forge.example:2222/team/site", "team/site"},
		{tidelock.GitRepository, "oci://forge.example/team/site", ""},
		{tidelock.OCIRepository, "oci://forge.example/Team/Site/api", "team/site/api"},
		{tidelock.OCIRepository, "https://forge.example/team/site", ""},
		{tidelock.OCIRepository, "oci://elsewhere.example/team/site", ""},
		{tidelock.HelmChart, "oci://forge.example/team/site/charts/podinfo", "team/site/charts/podinfo"},
		{tidelock.ImageRepository, "oci://forge.example/team/site", "team/site"},
		{"Bucket", "https://forge.example/team/site", ""},
	} {
		if got := pathOf(urls, test.kind, test.url); got != test.want {
			t.Errorf("%s %s: got %q, want %q", test.kind, test.url, got, test.want)
		}
	}
}

func TestMayLeadTo(t *testing.T) {
	for _, test := range []struct {
		id      tidelock.SourceID
		path    string
		project string
		want    bool
	}{
		{"GitRepository/x/a", "team/site", "team/site", true},
		{"GitRepository/x/a", "team/site/api", "team/site", false},
		{"GitRepository/x/a", "", "team/site", false},
		{"OCIRepository/x/a", "team/site", "team/site", true},
		{"OCIRepository/x/a", "team/site/api/v1", "team/site", true},
		{"OCIRepository/x/a", "team/site-two", "team/site", false},
		{"OCIRepository/x/a", "team", "team/site", false},
	} {
		s := source{id: test.id, path: test.path}
		if got := s.mayLeadTo(test.project); got != test.want {
			t.Errorf("%s of %q: got %v", test.id, test.path, got)
		}
	}
}
