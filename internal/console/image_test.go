package console_test

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/servertest"
)

// A pusher fills images of a server as the administrator.
type pusher struct {
	t *testing.T
	*servertest.OCI
}

func newPusher(t *testing.T, s *servertest.Server) pusher {
	return pusher{t, s.OCI("root", s.Token)}
}

func (p pusher) push(image, tag, content string) tidelock.Digest {
	p.t.Helper()
	digest, _, err := p.Push(p.t.Context(), image, tag, []byte(content))
	if err != nil {
		p.t.Fatal(err)
	}
	return digest
}

// manifest pushes a manifest without layers.
func (p pusher) manifest(image, reference string, fields map[string]any) tidelock.Digest {
	p.t.Helper()
	config := []byte("{}")
	if _, err := p.PutBlob(p.t.Context(), image, config); err != nil {
		p.t.Fatal(err)
	}
	manifest := map[string]any{
		"schemaVersion": 2, "mediaType": tidelock.MediaTypeManifest, "layers": []any{},
		"config": map[string]any{"mediaType": "application/vnd.oci.empty.v1+json", "digest": tidelock.DigestOf(config), "size": len(config)},
	}
	for name, value := range fields {
		manifest[name] = value
	}
	body, err := json.Marshal(manifest)
	if err != nil {
		p.t.Fatal(err)
	}
	digest := tidelock.DigestOf(body)
	if reference == "" {
		reference = string(digest)
	}
	answer, err := p.PutManifest(p.t.Context(), image, reference, tidelock.MediaTypeManifest, body)
	if err != nil || answer.Status != http.StatusCreated {
		p.t.Fatalf("push %s: %d %s, %v", image, answer.Status, answer.Body, err)
	}
	return digest
}

// attach pushes an artifact of a type that hangs on another.
func (p pusher) attach(image string, subject tidelock.Digest, artifactType string) tidelock.Digest {
	p.t.Helper()
	return p.manifest(image, "", map[string]any{
		"artifactType": artifactType,
		"subject":      map[string]any{"mediaType": tidelock.MediaTypeManifest, "digest": subject, "size": 1},
	})
}

// mainOf is what is between the head and the foot of a page.
func mainOf(t *testing.T, answer servertest.Response) string {
	t.Helper()
	_, text, ok := strings.Cut(answer.Body, "<main")
	if answer.Status != http.StatusOK || !ok {
		t.Fatalf("got %d %s", answer.Status, answer.Body)
	}
	return html.UnescapeString(text)
}

func TestImagesOfAProject(t *testing.T) {
	s := servertest.Start(t)
	site := s.Project("Team/Site", tidelock.Public)
	commit := site.Push("main", "app.yaml", "one")
	p := newPusher(t, s)
	old := p.push("team/site/api", "1.0.0", "one")
	digest := p.manifest("team/site/api", "latest", map[string]any{
		"annotations": map[string]string{tidelock.AnnotationRevision: "main@sha1:" + string(commit)},
	})
	p.manifest("team/site/api", "main", map[string]any{
		"annotations": map[string]string{tidelock.AnnotationRevision: "main@sha1:" + string(commit)},
	})
	sbom := p.attach("team/site/api", digest, "application/spdx+json")
	report := p.attach("team/site/api", digest, "application/sarif+json")
	p.push("team/site", "latest", "of the project itself")

	b := newBrowser(t, s)
	overview := mainOf(t, b.get("/"))
	for _, want := range []string{`href="/Team/Site"`, `href="/Team/Site/-/images/api"`, `href="/Team/Site/-/images"`, "team/site/api:latest", string(digest)} {
		if !strings.Contains(overview, want) {
			t.Errorf("the overview lacks %s", want)
		}
	}
	project := mainOf(t, b.get("/team/site/"))
	for _, want := range []string{`href="/Team/Site/-/images/api"`, `href="/Team/Site/-/images"`, `team/site/api`, string(commit)} {
		if !strings.Contains(project, want) {
			t.Errorf("the project lacks %s", want)
		}
	}
	image := mainOf(t, b.get("/Team/Site/-/images/api"))
	for _, want := range []string{
		"oci://" + strings.TrimPrefix(s.URL, "https://") + "/team/site/api", "3 tags", "latest", "1.0.0",
		string(digest), string(old), string(commit), "manifests", "SBOM", string(sbom), "report", string(report), "application/sarif+json",
	} {
		if !strings.Contains(image, want) {
			t.Errorf("the image lacks %s", want)
		}
	}
	if n := strings.Count(image, `title="`+string(digest)+`"`); n != 1 {
		t.Errorf("an artifact with two tags is shown %d times", n)
	}
	below := strings.Index(image, string(sbom))
	if first, second := strings.Index(image, string(digest)), strings.Index(image, string(old)); first > below || below > second {
		t.Error("what is attached is not below its artifact")
	}
	for _, path := range []string{"/Team/Site/-/images/none", "/Team/Site/-/imagesapi", "/Team/Site/-/images/api/", "/team/none/-/images", "/Team"} {
		want := http.StatusNotFound
		if strings.HasSuffix(path, "api/") {
			want = http.StatusOK
		}
		if got := b.get(path); got.Status != want {
			t.Errorf("%s: got %d, want %d", path, got.Status, want)
		}
	}
}

func TestImagesAreShownToThoseWhoMayRead(t *testing.T) {
	s := servertest.Start(t)
	site := s.Project("team/site", tidelock.Private)
	newPusher(t, s).push("team/site/app", "latest", "secret")
	guest, reporter, stranger := s.User("guest"), s.User("reporter"), s.User("stranger")
	site.Member(guest, tidelock.Guest)
	site.Member(reporter, tidelock.Reporter)
	for _, tc := range []struct {
		name, token    string
		project, image int
		shown          bool
	}{
		{"nobody", "", 404, 404, false},
		{"stranger", stranger.Token, 404, 404, false},
		{"guest", guest.Token, 200, 404, false},
		{"reporter", reporter.Token, 200, 200, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBrowser(t, s)
			if tc.token != "" {
				b.signIn(tc.token)
			}
			project, image := b.get("/team/site"), b.get("/team/site/-/images/app")
			if project.Status != tc.project || image.Status != tc.image {
				t.Errorf("got %d and %d, want %d and %d", project.Status, image.Status, tc.project, tc.image)
			}
			if got := strings.Contains(project.Body, "team/site/app"); got != tc.shown {
				t.Errorf("the image is shown: %t, want %t", got, tc.shown)
			}
			// What may not be seen looks like what does not exist.
			if tc.image == 404 {
				absent := b.get("/team/none/-/images/app")
				request := regexp.MustCompile(`Request <code>.*</code>`)
				if got, want := request.ReplaceAllString(image.Body, ""), request.ReplaceAllString(absent.Body, ""); got != want {
					t.Errorf("hidden:\n%s\nabsent:\n%s", got, want)
				}
			}
		})
	}
}

func TestImagesOfARenamedProject(t *testing.T) {
	s := servertest.Start(t)
	site := s.Project("team/site", tidelock.Public)
	newPusher(t, s).push("team/site/app", "latest", "one")
	s.Call(s.Token, http.MethodPut, fmt.Sprintf("projects/%d", site.ID), map[string]string{"path": "moved"}, nil)
	b := newBrowser(t, s)
	for _, path := range []string{"/team/site", "/team/site/-/images/app"} {
		if got := mainOf(t, b.get(path)); !strings.Contains(got, "team/moved/app") {
			t.Errorf("%s does not lead to the new path", path)
		}
	}
}

func TestPagesOfManyArtifacts(t *testing.T) {
	s := servertest.Start(t)
	s.Project("team/site", tidelock.Public)
	p := newPusher(t, s)
	for i := range 45 {
		p.push("team/site", fmt.Sprintf("build-%02d", i), fmt.Sprint("content ", i))
	}
	b := newBrowser(t, s)
	path := "/team/site/-/images"
	seen := map[string]bool{}
	pages := 0
	for path != "" {
		page := mainOf(t, b.get(path))
		tags := regexp.MustCompile(`build-\d\d`).FindAllString(page, -1)
		if pages++; pages == 1 && (len(tags) != 20 || tags[0] != "build-44") {
			t.Errorf("the first page shows %v, want the newest 20", tags)
		}
		for _, tag := range tags {
			seen[tag] = true
		}
		path = ""
		if next := regexp.MustCompile(`href="([^"]+)" rel="next"`).FindStringSubmatch(page); next != nil {
			path = next[1]
		}
	}
	if pages != 3 || len(seen) != 45 {
		t.Errorf("%d pages show %d tags, want 3 and 45", pages, len(seen))
	}
	for _, number := range []string{"4", "0", "-1", "x", "99999999999999999999", "9223372036854775807"} {
		mainOf(t, b.get("/team/site/-/images?page="+number))
	}
}
