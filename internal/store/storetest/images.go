package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
)

// digest is one that a test can tell from others.
func digest(n int) tidelock.Digest { return tidelock.Digest(fmt.Sprintf("sha256:%064d", n)) }

func (w world) image(project tidelock.ProjectID, name string) tidelock.Image {
	w.Helper()
	i, err := w.MakeImage(w.Context(), tidelock.Image{Project: project, Name: name, CreatedAt: start})
	w.ok(err)
	return i
}

func (w world) artifact(a tidelock.Artifact) tidelock.Artifact {
	w.Helper()
	if a.PushedAt.IsZero() {
		a.PushedAt = start
	}
	w.ok(w.AddArtifact(w.Context(), a))
	return a
}

// tag moves a tag as a push does.
func (w world) tag(i tidelock.Image, name string, to tidelock.Digest) tidelock.Push {
	w.Helper()
	p, err := w.RecordArtifact(w.Context(), tidelock.Push{
		Project: i.Project, At: start, Trace: "00-1", Artifact: &tidelock.ArtifactUpdate{Image: i.ID, Tag: name, New: to},
	})
	w.ok(err)
	return p
}

var imageTests = []test{
	{"have what any image of the project has", func(w world) {
		site := w.site()
		one, two := w.image(site.ID, "one"), w.image(site.ID, "two")
		w.ok(w.NoteBlob(w.Context(), one, tidelock.Part{Digest: digest(1), Size: 10}, start))
		w.ok(w.NoteBlob(w.Context(), two, tidelock.Part{Digest: digest(2), Size: 20}, start))
		w.artifact(tidelock.Artifact{Image: two.ID, Digest: digest(3), MediaType: tidelock.MediaTypeManifest, Size: 30})
		asked := []tidelock.Digest{digest(1), digest(2), digest(3), digest(4)}
		got, err := w.ContentIn(w.Context(), site.ID, asked)
		w.ok(err)
		equal(w, got, map[tidelock.Digest]bool{digest(1): true, digest(2): true, digest(3): true})
		got, err = w.ContentIn(w.Context(), site.ID+1, asked)
		w.ok(err)
		equal(w, got, map[tidelock.Digest]bool{})
	}},
	{"are made once", func(w world) {
		site := w.site()
		own, web := w.image(site.ID, ""), w.image(site.ID, "web")
		equal(w, own, tidelock.Image{ID: own.ID, Project: site.ID, CreatedAt: at(0)})
		equal(w, w.image(site.ID, "web"), web)
		ids := map[tidelock.ImageID]bool{}
		made := make([]tidelock.Image, 8)
		for _, err := range together(len(made), func(i int) (err error) {
			made[i], err = w.MakeImage(w.Context(), tidelock.Image{Project: site.ID, Name: "at/once"})
			return err
		}) {
			w.ok(err)
		}
		for _, i := range made {
			ids[i.ID] = true
		}
		equal(w, len(ids), 1)
		found, err := w.ImageByName(w.Context(), site.ID, "web")
		w.ok(err)
		equal(w, found, web)
		_, err = w.ImageByName(w.Context(), site.ID, "WEB")
		w.kind(err, tidelock.NotFound)
		_, err = w.MakeImage(w.Context(), tidelock.Image{Project: 99})
		w.kind(err, tidelock.NotFound)

		path := func(i tidelock.Image) string { return "[" + i.Name + "]" }
		equal(w, names(w, path)(w.Images(w.Context(), tidelock.ImageFilter{Project: site.ID, Empty: true}, everything)), "[] [web] [at/once]")
		equal(w, names(w, path)(w.Images(w.Context(), tidelock.ImageFilter{Project: site.ID}, everything)), "")
		w.artifact(tidelock.Artifact{Image: web.ID, Digest: digest(1)})
		equal(w, names(w, path)(w.Images(w.Context(), tidelock.ImageFilter{Project: site.ID}, everything)), "[web]")
		equal(w, names(w, path)(w.Images(w.Context(), tidelock.ImageFilter{Below: site.Namespace}, everything)), "[web]")
		guest := w.user("guest")
		w.member(tidelock.Holder{Project: site.ID}, guest.ID, tidelock.Guest)
		for level, want := range map[tidelock.AccessLevel]string{tidelock.NoAccess: "[web]", tidelock.Guest: "[web]", tidelock.Reporter: ""} {
			filter := tidelock.ImageFilter{Below: site.Namespace, Viewer: &tidelock.Viewer{User: guest.ID}, MinLevel: level}
			equal(w, names(w, path)(w.Images(w.Context(), filter, everything)), want)
		}
		w.ok(w.DeleteProject(w.Context(), site.ID))
		_, err = w.Image(w.Context(), web.ID)
		w.kind(err, tidelock.NotFound)
	}},

	{"keep artifacts whole", func(w world) {
		i := w.image(w.site().ID, "web")
		a := w.artifact(tidelock.Artifact{
			Image: i.ID, Digest: digest(1), MediaType: tidelock.MediaTypeManifest, Type: "application/x", Size: 10, Subject: digest(9),
			Annotations: map[string]string{"é": "\"ü\n"}, Commit: "c1", By: 3, Token: 4, PushedAt: at(0),
			Parts: []tidelock.Part{
				{Digest: digest(2), MediaType: "application/y", Size: 1}, {Digest: digest(2), MediaType: "application/z", Size: 1},
				{Digest: digest(3), Size: 5, Manifest: true},
			},
		})
		got, err := w.Artifact(w.Context(), i.ID, digest(1))
		w.ok(err)
		equal(w, got, a)
		again := a
		again.Commit, again.PushedAt = "other", at(time.Hour)
		w.artifact(again) // it is as it was
		got, err = w.Artifact(w.Context(), i.ID, digest(1))
		w.ok(err)
		equal(w, got, a)
		for n := range 250 {
			a.Parts = append(a.Parts, tidelock.Part{Digest: digest(100 + n), Size: int64(n)})
		}
		a.Digest, a.Subject, a.PushedAt = digest(4), digest(1), at(time.Minute)
		w.artifact(a)
		list, total, err := w.Artifacts(w.Context(), tidelock.ArtifactFilter{Image: i.ID}, everything)
		w.ok(err)
		equal(w, total, 2)
		equal(w, list[0], a)
		for want, filter := range map[int]tidelock.ArtifactFilter{
			1: {Subject: digest(1)}, 0: {Subject: digest(1), Type: "application/other"}, 2: {},
		} {
			filter.Image = i.ID
			found, _, err := w.Artifacts(w.Context(), filter, everything)
			w.ok(err)
			equal(w, len(found), want)
		}
		holders, err := w.Holders(w.Context(), i.ID, digest(3))
		w.ok(err)
		slices.Sort(holders)
		equal(w, holders, []tidelock.Digest{digest(1), digest(4)})
		known, err := w.KnownArtifacts(w.Context(), i.ID, []tidelock.Digest{digest(1), digest(7)})
		w.ok(err)
		equal(w, known, map[tidelock.Digest]int64{digest(1): 10})
		_, err = w.Artifact(w.Context(), i.ID, digest(7))
		w.kind(err, tidelock.NotFound)
	}},

	{"are listed by what they are attached to, a few at a time", func(w world) {
		i := w.image(w.site().ID, "web")
		for n := range 5 {
			w.artifact(tidelock.Artifact{
				Image: i.ID, Digest: digest(10 + n), MediaType: tidelock.MediaTypeManifest, Subject: digest(1),
				Type: []string{"application/a", "application/b"}[n%2], Annotations: map[string]string{"n": fmt.Sprint(n)},
			})
		}
		w.artifact(tidelock.Artifact{Image: i.ID, Digest: digest(20), MediaType: tidelock.MediaTypeManifest})
		list := func(f tidelock.ArtifactFilter, after tidelock.Digest, limit int) (digests []tidelock.Digest) {
			f.Image = i.ID
			found, err := w.Referrers(w.Context(), f, after, limit)
			w.ok(err)
			for _, a := range found {
				digests = append(digests, a.Digest)
			}
			return digests
		}
		equal(w, list(tidelock.ArtifactFilter{Subject: digest(1)}, "", 3), []tidelock.Digest{digest(10), digest(11), digest(12)})
		equal(w, list(tidelock.ArtifactFilter{Subject: digest(1)}, digest(12), 3), []tidelock.Digest{digest(13), digest(14)})
		equal(w, list(tidelock.ArtifactFilter{Subject: digest(1), Type: "application/b"}, "", 3), []tidelock.Digest{digest(11), digest(13)})
		equal(w, list(tidelock.ArtifactFilter{}, "", 3), nil)
	}},

	{"are found by the commit they were made from", func(w world) {
		i := w.image(w.site().ID, "web")
		w.artifact(tidelock.Artifact{Image: i.ID, Digest: digest(1), Commit: "c1"})
		w.push(i.Project, "main=c1")
		made, err := w.RecordArtifact(w.Context(), tidelock.Push{
			Project: i.Project, At: start, Artifact: &tidelock.ArtifactUpdate{Image: i.ID, Tag: "latest", New: digest(1), Commit: "c1"},
		})
		w.ok(err)
		found, n, err := w.Pushes(w.Context(), tidelock.PushFilter{Project: i.Project, Commit: "c1"}, everything)
		w.ok(err)
		equal(w, n, 2)
		equal(w, found[0].ID, made.ID)
	}},

	{"move tags with pushes", func(w world) {
		i := w.image(w.site().ID, "web")
		for n := range 3 {
			w.artifact(tidelock.Artifact{Image: i.ID, Digest: digest(n), Commit: tidelock.CommitID(fmt.Sprint("c", n))})
		}
		first := w.tag(i, "latest", digest(1))
		equal(w, *first.Artifact, tidelock.ArtifactUpdate{Image: i.ID, Tag: "latest", New: digest(1)})
		equal(w, w.tag(i, "latest", digest(1)).ID, tidelock.PushID(0))
		second := w.tag(i, "latest", digest(2))
		equal(w, second.Artifact.Old, digest(1))
		w.tag(i, "Z", digest(2))
		w.tag(i, "a", digest(1))

		pushes, err := w.Unannounced(w.Context(), 10)
		w.ok(err)
		equal(w, len(pushes), 4)
		equal(w, pushes[1], second)
		got, err := w.Push(w.Context(), second.ID)
		w.ok(err)
		equal(w, got, second)

		tags, err := w.Tags(w.Context(), i.ID, "", 0)
		w.ok(err)
		var listed []string
		for _, t := range tags {
			listed = append(listed, t.Name)
		}
		equal(w, listed, []string{"Z", "a", "latest"}) // by byte, whatever the locale
		some, err := w.Tags(w.Context(), i.ID, "Z", 1)
		w.ok(err)
		equal(w, some, tags[1:2])
		equal(w, tags[2], tidelock.Tag{Image: i.ID, Name: "latest", Digest: digest(2), Push: second.ID, MovedAt: at(0)})
		of, err := w.TagsOf(w.Context(), i.ID, digest(2))
		w.ok(err)
		equal(w, len(of), 2)
		n, err := w.CountTags(w.Context(), i.ID)
		w.ok(err)
		equal(w, n, 3)
		head, err := w.TagHead(w.Context(), i.ID, "latest")
		w.ok(err)
		equal(w, head, tidelock.Head{
			Image: i.ID, Ref: "refs/tags/latest", Digest: digest(2), Commit: "c2", Push: second.ID, MovedAt: at(0), Trace: "00-1",
		})
		heads, err := w.TagHeads(w.Context(), i.ID)
		w.ok(err)
		equal(w, heads[2], head)

		w.kind(w.RemoveArtifact(w.Context(), i.ID, digest(2)), tidelock.Conflict)
		equal(w, w.tag(i, "latest", "").Artifact.Old, digest(2))
		w.tag(i, "Z", "")
		w.ok(w.RemoveArtifact(w.Context(), i.ID, digest(2)))
		w.kind(w.RemoveArtifact(w.Context(), i.ID, digest(2)), tidelock.NotFound)
		_, err = w.RecordArtifact(w.Context(), tidelock.Push{Project: i.Project, Artifact: &tidelock.ArtifactUpdate{Image: i.ID, Tag: "x", New: digest(77)}})
		w.kind(err, tidelock.NotFound)
		_, err = w.Tag(w.Context(), i.ID, "x")
		w.kind(err, tidelock.NotFound)
		w.ok(w.RemoveImage(w.Context(), i.ID))
		_, err = w.Push(w.Context(), first.ID) // what happened stays
		w.ok(err)
	}},

	{"count content once", func(w world) {
		site := w.site()
		web, api := w.image(site.ID, "web"), w.image(site.ID, "api")
		other := w.image(w.project(w.group(0, "others").ID, "other").ID, "")
		part := func(n int, size int64) tidelock.Part { return tidelock.Part{Digest: digest(n), Size: size} }
		w.ok(w.NoteBlob(w.Context(), web, part(1, 100), start))
		w.ok(w.NoteBlob(w.Context(), api, part(1, 100), start.Add(time.Hour)))
		w.ok(w.NoteBlob(w.Context(), api, part(2, 10), start))
		w.ok(w.NoteBlob(w.Context(), other, part(3, 1000), start))
		w.artifact(tidelock.Artifact{Image: web.ID, Digest: digest(4), Size: 1})
		bytes, err := w.ImageUsage(w.Context(), site.ID)
		w.ok(err)
		equal(w, bytes, int64(111))
		seen, err := w.BlobSeen(w.Context(), api.ID, digest(1))
		w.ok(err)
		equal(w, seen, at(time.Hour))
		_, err = w.BlobSeen(w.Context(), api.ID, digest(3))
		w.kind(err, tidelock.NotFound)
		known, err := w.KnownBlobs(w.Context(), api.ID, []tidelock.Digest{digest(1), digest(2), digest(3)})
		w.ok(err)
		equal(w, known, map[tidelock.Digest]int64{digest(1): 100, digest(2): 10})
		w.ok(w.NoteBlob(w.Context(), tidelock.Image{Project: site.ID, Name: "made"}, part(1, 100), start))
		_, err = w.ImageByName(w.Context(), site.ID, "made")
		w.ok(err)
	}},

	{"let go what is not named", func(w world) {
		i := w.image(w.site().ID, "web")
		old, young := start, start.Add(time.Hour)
		for n, seen := range map[int]time.Time{1: old, 2: old, 3: young, 4: old} {
			w.ok(w.NoteBlob(w.Context(), i, tidelock.Part{Digest: digest(n), Size: 1}, seen))
		}
		keeps := w.artifact(tidelock.Artifact{Image: i.ID, Digest: digest(10), Parts: []tidelock.Part{{Digest: digest(1)}}})
		w.artifact(tidelock.Artifact{Image: i.ID, Digest: digest(11), Parts: []tidelock.Part{{Digest: digest(2)}, {Digest: digest(10), Manifest: true}}})
		w.tag(i, "a", keeps.Digest)
		content, err := w.ImageContent(w.Context(), i.ID)
		w.ok(err)
		equal(w, len(content), 2)
		equal(w, len(content[0].Tags), 1)
		equal(w, content[0].SeenAt, at(0))
		equal(w, content[1].Artifact.Parts, []tidelock.Part{{Digest: digest(10), Manifest: true}})

		loose := func(dead ...tidelock.Digest) (loose []tidelock.Digest) {
			gone := map[tidelock.Digest]bool{}
			for _, d := range dead {
				gone[d] = true
			}
			loose, all, err := w.LooseBlobs(w.Context(), i.ID, gone, young)
			w.ok(err)
			equal(w, all, 4)
			return loose
		}
		equal(w, loose(), []tidelock.Digest{digest(4)})
		equal(w, loose(digest(11)), []tidelock.Digest{digest(2), digest(4)})
		w.artifact(tidelock.Artifact{Image: i.ID, Digest: digest(12), Parts: []tidelock.Part{{Digest: digest(2)}, {Digest: digest(2)}}})
		equal(w, loose(digest(11)), []tidelock.Digest{digest(4)})
		equal(w, loose(digest(12)), []tidelock.Digest{digest(4)})
		equal(w, loose(digest(11), digest(12)), []tidelock.Digest{digest(2), digest(4)})
		w.ok(w.RemoveArtifact(w.Context(), i.ID, digest(12)))

		// What is done in a transaction that fails was not done.
		failed := errors.New("failed")
		err = w.Atomically(w.Context(), func(ctx context.Context) error {
			_, err := w.RemoveContent(ctx, i.ID, []tidelock.Digest{digest(11)}, nil, young)
			w.ok(err)
			return failed
		})
		if !errors.Is(err, failed) {
			w.Fatal(err)
		}
		some := []tidelock.Digest{digest(1), digest(2), digest(3), digest(4)} // named, free, young, free
		gone, err := w.RemoveContent(w.Context(), i.ID, []tidelock.Digest{digest(11)}, some, young)
		w.ok(err)
		equal(w, gone, []tidelock.Digest{digest(2), digest(4)})
		empty, err := w.RemoveEmptyImage(w.Context(), i.ID, young)
		w.ok(err)
		equal(w, empty, false)
		w.tag(i, "a", "")
		gone, err = w.RemoveContent(w.Context(), i.ID, []tidelock.Digest{keeps.Digest}, some, young.Add(time.Hour))
		w.ok(err)
		equal(w, gone, []tidelock.Digest{digest(1), digest(3)})
		empty, err = w.RemoveEmptyImage(w.Context(), i.ID, start)
		w.ok(err)
		equal(w, empty, false)
		empty, err = w.RemoveEmptyImage(w.Context(), i.ID, young)
		w.ok(err)
		equal(w, empty, true)
		_, err = w.ImageContent(w.Context(), i.ID)
		w.kind(err, tidelock.NotFound)
	}},

	{"are used by clusters", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		w.ok(w.SaveAgentSources(w.Context(), agent.ID, []tidelock.AgentSource{
			{Agent: agent.ID, Source: "OCIRepository/a/b", Project: site.ID, Digest: digest(1), Revision: "latest@" + string(digest(2)), UpdatedAt: start},
			{Agent: agent.ID, Source: "GitRepository/a/b", Project: site.ID, Revision: "main@sha1:0123", UpdatedAt: start},
		}, nil))
		used, err := w.UsedDigests(w.Context(), site.ID)
		w.ok(err)
		equal(w, used, []tidelock.Digest{digest(1), digest(2)})
		used, err = w.UsedDigests(w.Context(), 99)
		w.ok(err)
		equal(w, used, []tidelock.Digest{})
	}},

	{"have rules and settings", func(w world) {
		site := w.site()
		rules, err := w.TagRules(w.Context(), site.ID)
		w.ok(err)
		equal(w, rules, []tidelock.TagRule{{ID: rules[0].ID, Project: site.ID, Pattern: tidelock.SemVerTags}})
		made, err := w.SaveTagRule(w.Context(), tidelock.TagRule{Project: site.ID, Pattern: "x", PushLevel: tidelock.Maintainer, DeleteLevel: tidelock.Owner})
		w.ok(err)
		_, err = w.SaveTagRule(w.Context(), tidelock.TagRule{Project: site.ID, Pattern: "x"})
		w.taken(err, "tag_name_pattern")
		made.Pattern = tidelock.SemVerTags
		_, err = w.SaveTagRule(w.Context(), made)
		w.taken(err, "tag_name_pattern")
		made.Pattern = "y"
		_, err = w.SaveTagRule(w.Context(), made)
		w.ok(err)
		w.kind(w.RemoveTagRule(w.Context(), 99, made.ID), tidelock.NotFound)
		w.ok(w.RemoveTagRule(w.Context(), site.ID, rules[0].ID))
		rules, err = w.TagRules(w.Context(), site.ID)
		w.ok(err)
		equal(w, rules, []tidelock.TagRule{made})

		_, err = w.ImageSettings(w.Context(), site.ID)
		w.kind(err, tidelock.NotFound)
		settings := tidelock.ImageSettings{Project: site.ID, Quota: 1 << 40, Retention: tidelock.Retention{
			Enabled: true, Every: 25 * time.Hour, KeepNewest: 3, OlderThan: time.Minute, Keep: "a", Remove: "b", NextAt: at(time.Hour),
		}}
		w.ok(w.SaveImageSettings(w.Context(), settings))
		got, err := w.ImageSettings(w.Context(), site.ID)
		w.ok(err)
		equal(w, got, settings)
		for after, want := range map[time.Duration]int{0: 0, time.Hour: 1} {
			due, err := w.DueRetentions(w.Context(), start.Add(after), 10)
			w.ok(err)
			equal(w, len(due), want)
		}
		w.ok(w.RetentionDone(w.Context(), site.ID, start.Add(2*time.Hour)))
		due, err := w.DueRetentions(w.Context(), start.Add(time.Hour), 10)
		w.ok(err)
		equal(w, len(due), 0)
		w.kind(w.SaveImageSettings(w.Context(), tidelock.ImageSettings{Project: 99}), tidelock.NotFound)
	}},
}
