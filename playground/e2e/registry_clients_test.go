package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/supervisor"
)

// An imageHost is a forge, programs that nobody here wrote and that use its
// registry, a project whose path has capitals, and people and tokens.
type imageHost struct {
	*e2e.Forge
	host    string // as clients name it
	image   string // of the project, which is private
	project *e2e.Project

	developer, reporter        login // people with personal tokens
	projectToken               login
	deployPusher, deployReader login
	programs                   component.Set
}

// A login is what somebody signs in with.
type login struct{ name, user, password string }

func newImageHost(t *testing.T, flags ...string) *imageHost {
	t.Helper()
	set, err := component.Default(t.Context(), component.RegistryClients()...)
	if err != nil {
		t.Fatal(err)
	}
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true, ServerFlags: flags})
	address, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := &imageHost{Forge: f, host: address.Host, programs: set}
	r.project = f.Project("Team/Web-Shop", "private")
	r.image = r.host + "/team/web-shop"

	member := func(name string, level int, scopes ...string) login {
		var user struct{ ID int64 }
		f.Call(http.MethodPost, "users", map[string]any{"username": name, "name": name, "email": name + "@example.org", "reset_password": true}, &user)
		f.Call(http.MethodPost, fmt.Sprintf("projects/%d/members", r.project.ID), map[string]any{"user_id": user.ID, "access_level": level}, nil)
		var token struct{ Token string }
		f.Call(http.MethodPost, fmt.Sprintf("users/%d/personal_access_tokens", user.ID), map[string]any{"name": "registry", "scopes": scopes}, &token)
		return login{name, name, token.Token}
	}
	made := func(kind, name string, more map[string]any) login {
		in := map[string]any{"name": name, "expires_at": time.Now().AddDate(0, 1, 0).Format(time.DateOnly)}
		for k, v := range more {
			in[k] = v
		}
		var token struct{ Username, Token string }
		f.Call(http.MethodPost, fmt.Sprintf("projects/%d/%s", r.project.ID, kind), in, &token)
		if token.Username == "" {
			token.Username = "project" // any will do
		}
		return login{name, token.Username, token.Token}
	}
	r.developer = member("dev", 30, "read_registry", "write_registry")
	r.reporter = member("rita", 20, "read_registry", "write_registry")
	r.projectToken = made("access_tokens", "project token", map[string]any{"scopes": []string{"read_registry", "write_registry"}, "access_level": 30})
	r.deployPusher = made("deploy_tokens", "deploy token", map[string]any{"scopes": []string{"read_registry", "write_registry"}})
	r.deployReader = made("deploy_tokens", "reading deploy token", map[string]any{"scopes": []string{"read_registry"}})
	return r
}

// A shell runs programs in a folder of its own, which is also their home, as
// somebody who trusts the forge's generated authority and nothing else.
type shell struct {
	t   *testing.T
	r   *imageHost
	dir string
	env []string
}

func (r *imageHost) shell(t *testing.T) *shell {
	t.Helper()
	s := &shell{t: t, r: r, dir: t.TempDir()}
	// All of them are written in Go, which reads SSL_CERT_FILE. skopeo keeps what
	// it signs in with in the runtime folder. Nothing else is reached, such as
	// the roots of trust that cosign would like to have; Go never asks a proxy
	// for localhost.
	s.env = append(supervisor.Environment(s.dir), "SSL_CERT_FILE="+r.CAFile, "SSL_CERT_DIR="+s.dir, "XDG_RUNTIME_DIR="+s.dir,
		"HTTPS_PROXY=http://localhost:1", "COSIGN_PASSWORD=")
	return s
}

// in is the shell in a subtest.
func (s *shell) in(t *testing.T) *shell {
	here := *s
	here.t = t
	return &here
}

// dockerConfig signs all programs in, as docker login does.
func (s *shell) dockerConfig(who login) *shell {
	s.t.Helper()
	s.write(".docker/config.json", dockerConfig(map[string]map[string]string{
		s.r.host: {"auth": base64.StdEncoding.EncodeToString([]byte(who.user + ":" + who.password))},
	}))
	return s
}

func dockerConfig(auths map[string]map[string]string) string {
	text, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		panic(err) // of strings
	}
	return string(text)
}

func (s *shell) write(path, text string) {
	s.t.Helper()
	path = filepath.Join(s.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shell) read(path string) string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, path))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// noise writes a file that does not compress.
func (s *shell) noise(path string, size int) {
	s.t.Helper()
	text := make([]byte, size)
	_, _ = rand.Read(text) // never fails
	s.write(path, string(text))
}

// run gives what a program prints to its two outputs.
func (s *shell) run(args ...string) (stdout, stderr string, err error) {
	s.t.Helper()
	program := args[0]
	if built, ok := s.r.programs[component.Name(program)]; ok {
		program = built.Binary()
	} else if _, err := exec.LookPath(program); err != nil {
		s.t.Fatalf("%s is missing: .ci/prepare installs the Debian package of that name", program)
	}
	cmd := exec.CommandContext(s.t.Context(), program, args[1:]...)
	switch { // oras speaks plain HTTP to localhost unless told otherwise
	case args[0] != "oras" || args[1] == "logout":
	case args[1] == "cp":
		cmd.Args = append(cmd.Args, "--from-plain-http=false", "--to-plain-http=false")
	default:
		cmd.Args = append(cmd.Args, "--plain-http=false")
	}
	cmd.Dir, cmd.Env = s.dir, s.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		s.t.Fatalf("run %s: %v", args[0], err)
	}
	return strings.TrimSpace(out.String()), strings.TrimSpace(errs.String()), err
}

// must runs a program that has to succeed, and gives what it prints to its
// first output.
func (s *shell) must(args ...string) string {
	s.t.Helper()
	stdout, stderr, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s\n%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// says runs a program that has to succeed and print something.
func (s *shell) says(want string, args ...string) {
	s.t.Helper()
	if stdout, stderr, err := s.run(args...); err != nil || !strings.Contains(stdout+stderr, want) {
		s.t.Errorf("%s: %v, and it said\n%s\n%s\nwant %q", strings.Join(args, " "), err, stdout, stderr, want)
	}
}

// refused runs a program that has to fail and say why.
func (s *shell) refused(want string, args ...string) {
	s.t.Helper()
	stdout, stderr, err := s.run(args...)
	switch {
	case err == nil:
		s.t.Errorf("%s succeeded, want a refusal with %q; it said\n%s\n%s", strings.Join(args, " "), want, stdout, stderr)
	case !strings.Contains(stdout+stderr, want):
		s.t.Errorf("%s was refused with\n%s\n%s\nwant %q", strings.Join(args, " "), stdout, stderr, want)
	}
}

// same fails the test unless two texts are equal.
func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %.300q, want %.300q", what, got, want)
	}
}

// lines splits what a program lists, sorted.
func lines(text string) []string {
	list := strings.Fields(text)
	slices.Sort(list)
	return list
}

// pushers are all that may push, each by a kind of token of its own.
func (r *imageHost) pushers() []login {
	return []login{r.developer, r.projectToken, r.deployPusher}
}

// Why a push is refused, in the words that the programs pass on.
const (
	immutable = "is immutable by the rule"
	noRole    = "you may not push images of project Team/Web-Shop: it needs the role developer"
	noScope   = "the token cannot push images: it needs one of the scopes write_registry"
	noDelete  = "this kind of token cannot delete images"
	nobody    = "access forbidden: sign in with a user name and an access token"
)

// A reader may pull, and is told why not push.
type reader struct {
	login
	why string
}

func (r *imageHost) readers() []reader {
	return []reader{{r.reporter, noRole}, {r.deployReader, noScope}}
}

const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: shop\ndata:\n  value: %q\n"

// TestFluxArtifacts drives flux push, tag, list, diff and pull artifact.
func TestFluxArtifacts(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	commit := r.project.Push("main", map[string]string{"deploy/shop.yaml": fmt.Sprintf(configMap, "1")})
	push := func(tag, path string, more ...string) []string {
		return append([]string{"flux", "push", "artifact", "oci://" + r.image + "/deploy:" + tag,
			"--path", path, "--source", r.project.URL, "--revision", "main@sha1:" + commit, "--output", "json"}, more...)
	}
	for i, who := range r.pushers() {
		for _, how := range []string{"creds", "docker config"} {
			t.Run(who.name+" by "+how, func(t *testing.T) {
				s := r.shell(t)
				var signIn []string
				if how == "creds" {
					signIn = []string{"--creds", who.user + ":" + who.password}
				} else {
					s.dockerConfig(who)
				}
				s.write("deploy/shop.yaml", fmt.Sprintf(configMap, fmt.Sprint(i, how)))
				tag := fmt.Sprintf("1.%d.%d", i, len(how))
				var pushed struct{ Digest, Repository, Tag string }
				if err := json.Unmarshal([]byte(s.must(push(tag, "deploy", signIn...)...)), &pushed); err != nil {
					t.Fatal(err)
				}
				same(t, "pushed", pushed.Repository+":"+pushed.Tag, r.image+"/deploy:"+tag)

				listed := s.must(append([]string{"flux", "list", "artifacts", "oci://" + r.image + "/deploy"}, signIn...)...)
				for _, want := range []string{r.image + "/deploy:" + tag, pushed.Digest, r.project.URL, "main@sha1:" + commit} {
					if !strings.Contains(listed, want) {
						t.Errorf("the list lacks %s:\n%s", want, listed)
					}
				}
				s.says("artifact tagged as "+r.image+"/deploy:latest", append([]string{"flux", "tag", "artifact", "oci://" + r.image + "/deploy:" + tag, "--tag", "latest"}, signIn...)...)
				s.says("no changes detected", append([]string{"flux", "diff", "artifact", "oci://" + r.image + "/deploy:latest", "--path", "deploy"}, signIn...)...)
				if err := os.Mkdir(filepath.Join(s.dir, "pulled"), 0o755); err != nil {
					t.Fatal(err)
				}
				s.says("digest "+r.image+"/deploy@"+pushed.Digest, append([]string{"flux", "pull", "artifact", "oci://" + r.image + "/deploy:latest", "--output", "pulled"}, signIn...)...)
				same(t, "pulled", s.read("pulled/shop.yaml"), s.read("deploy/shop.yaml"))

				s.write("deploy/shop.yaml", fmt.Sprintf(configMap, "changed"))
				s.refused("differs", append([]string{"flux", "diff", "artifact", "oci://" + r.image + "/deploy:latest", "--path", "deploy"}, signIn...)...)
				s.refused(immutable, push(tag, "deploy", signIn...)...)
				s.must(push("main", "deploy", signIn...)...) // a branch moves
			})
		}
	}
	t.Run("refusals", func(t *testing.T) {
		s := r.shell(t)
		s.write("deploy/shop.yaml", fmt.Sprintf(configMap, "other"))
		s.refused("HTTP Basic: Access denied", push("2.0.0", "deploy", "--creds", "dev:glpat-wrong")...)
		for _, who := range r.readers() {
			s.refused(who.why, push("2.0.0", "deploy", "--creds", who.user+":"+who.password)...)
			s.says("digest", "flux", "pull", "artifact", "oci://"+r.image+"/deploy:latest", "--output", ".", "--creds", who.user+":"+who.password)
		}
		s.refused(nobody, "flux", "pull", "artifact", "oci://"+r.image+"/deploy:latest", "--output", ".")
	})
	// A commit is known by its whole id and, unlike to Flux, by a short one that
	// can mean no other.
	t.Run("revision", func(t *testing.T) {
		s := r.shell(t).dockerConfig(r.developer)
		for tag, c := range map[string]struct{ revision, want string }{
			"whole":   {"main@sha1:" + commit, commit},
			"short":   {"main@sha1:" + commit[:8], commit},
			"unknown": {"main@sha1:" + strings.Repeat("a", 40), ""},
			"branch":  {"main", ""},
		} {
			s.write("deploy/shop.yaml", fmt.Sprintf(configMap, c.revision))
			s.must("flux", "push", "artifact", "oci://"+r.image+"/revision:"+tag, "--path", "deploy", "--source", r.project.URL, "--revision", c.revision)
			same(t, tag, r.commitOf(t, "revision", tag), c.want)
		}
	})
}

// layout makes an image of one layer, in a folder as the OCI specification has
// it, under the tag "test".
func (s *shell) layout(dir string, size int) {
	s.t.Helper()
	s.layer(dir+".layer", size)
	s.must("crane", "append", "--oci-empty-base", "--new_layer", dir+".layer", "--new_tag", "test", "--output", dir+".tar")
	s.must("skopeo", "copy", "docker-archive:"+dir+".tar", "oci:"+dir+":test")
}

// commitOf is the commit from which a tag of an image of the project was made,
// as the forge's list of pushes tells it.
func (r *imageHost) commitOf(t *testing.T, image, tag string) string {
	t.Helper()
	var pushes []struct {
		Artifact *struct{ Image, Tag, Commit string }
	}
	r.Call(http.MethodGet, fmt.Sprintf("projects/%d/pushes", r.project.ID), nil, &pushes)
	for _, p := range pushes {
		if a := p.Artifact; a != nil && a.Image == "team/web-shop/"+image && a.Tag == tag {
			return a.Commit
		}
	}
	t.Errorf("no push moved tag %s of image %s", tag, image)
	return ""
}

// layer writes a tar file with one file of a size that does not compress.
func (s *shell) layer(path string, size int) {
	s.t.Helper()
	s.noise(path+".content", size)
	if out, err := exec.CommandContext(s.t.Context(), "tar", "--create", "--file", filepath.Join(s.dir, path), "--directory", s.dir, path+".content").CombinedOutput(); err != nil {
		s.t.Fatalf("make a layer: %v\n%s", err, out)
	}
}

// TestCrane drives crane with images of one and of two platforms.
func TestCrane(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	for i, who := range r.pushers() {
		t.Run(who.name, func(t *testing.T) {
			s := r.shell(t)
			s.must("crane", "auth", "login", r.host, "--username", who.user, "--password", who.password)
			image := fmt.Sprintf("%s/crane%d", r.image, i)
			for _, platform := range []string{"amd64", "arm64"} {
				s.layer(platform+".tar", 4096)
				s.must("crane", "append", "--oci-empty-base", "--new_layer", platform+".tar", "--new_tag", image+":"+platform)
				s.must("crane", "mutate", image+":"+platform, "--set-platform", "linux/"+platform, "--label", "org.example=a b", "--tag", image+":"+platform)
			}
			s.must("crane", "index", "append", "--manifest", image+":amd64", "--manifest", image+":arm64", "--tag", image+":1.0.0")
			same(t, "digest of a platform", s.must("crane", "digest", "--platform", "linux/arm64", image+":1.0.0"), s.must("crane", "digest", image+":arm64"))
			s.says("PASS", "crane", "validate", "--remote", image+":1.0.0")
			s.says("org.example", "crane", "config", image+":amd64")
			same(t, "file in the image", s.must("crane", "export", image+":amd64", "out.tar"), "")
			if !strings.Contains(s.read("out.tar"), s.read("amd64.tar.content")) {
				t.Error("the exported file system lacks the file that was pushed")
			}

			s.must("crane", "tag", image+":1.0.0", "stable")
			same(t, "tags", strings.Join(lines(s.must("crane", "ls", image)), " "), "1.0.0 amd64 arm64 stable")
			digest := s.must("crane", "digest", image+":1.0.0")
			s.says("mounted blob", "crane", "copy", image+":1.0.0", image+"/copy:1.0.0")
			same(t, "digest of the copy", s.must("crane", "digest", image+"/copy:1.0.0"), digest)
			s.must("crane", "pull", "--format", "oci", image+":1.0.0", "layout")
			s.must("crane", "push", "--index", "layout", image+"/pushed:v1")
			s.must("crane", "pull", image+":amd64", "image.tar")
			s.must("crane", "push", "image.tar", image+"/pushed:tarball")

			s.refused(immutable, "crane", "copy", image+":amd64", image+":1.0.0")
			s.refused(immutable, "crane", "tag", image+":amd64", "1.0.0")
			if who == r.deployPusher { // which may push, and not delete
				s.refused(noDelete, "crane", "delete", image+":stable")
				return
			}
			s.refused(immutable, "crane", "delete", image+"@"+digest)
			s.must("crane", "delete", image+":stable")
			s.refused("MANIFEST_UNKNOWN", "crane", "manifest", image+":stable")
			gone := s.must("crane", "mutate", image+":amd64", "--label", "gone=soon", "--tag", image+":gone")
			s.must("crane", "delete", gone)
			same(t, "tags that are left", strings.Join(lines(s.must("crane", "ls", image)), " "), "1.0.0 amd64 arm64")
		})
	}
	t.Run("refusals", func(t *testing.T) {
		s := r.shell(t)
		s.layer("layer.tar", 64)
		for _, who := range r.readers() {
			s.must("crane", "auth", "login", r.host, "--username", who.user, "--password", who.password)
			s.refused(who.why, "crane", "append", "--oci-empty-base", "--new_layer", "layer.tar", "--new_tag", r.image+"/crane0:new")
			s.must("crane", "digest", r.image+"/crane0:1.0.0")
		}
		s.must("crane", "auth", "logout", r.host)
		s.refused(nobody, "crane", "digest", r.image+"/crane0:1.0.0")
	})
}

// TestORAS drives oras: artifacts of many types, and what is attached to them.
func TestORAS(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	for i, who := range r.pushers() {
		t.Run(who.name, func(t *testing.T) {
			s := r.shell(t)
			s.must("oras", "login", r.host, "--username", who.user, "--password", who.password)
			image := fmt.Sprintf("%s/oras%d", r.image, i)
			s.write("config.json", `{"a": 1}`)
			s.noise("data.bin", 100_000)
			s.write("report.json", `{"findings": []}`)
			digest := s.must("oras", "push", image+":1.0.0", "--artifact-type", "application/vnd.example.shop.v1",
				"--annotation", "org.example=a=b", "config.json:application/json", "data.bin", "--format", "go-template={{.digest}}")
			same(t, "resolved", s.must("oras", "resolve", image+":1.0.0"), digest)

			s.must("oras", "attach", image+":1.0.0", "--artifact-type", "application/sarif+json", "report.json")
			s.must("oras", "attach", image+"@"+digest, "--artifact-type", "application/spdx+json", "report.json")
			var found struct {
				Referrers []struct{ Digest, ArtifactType string }
			}
			if err := json.Unmarshal([]byte(s.must("oras", "discover", image+":1.0.0", "--format", "json")), &found); err != nil {
				t.Fatal(err)
			}
			if len(found.Referrers) != 2 {
				t.Fatalf("oras discovers %+v, want both attachments", found)
			}
			s.says("application/spdx+json", "oras", "discover", image+":1.0.0", "--artifact-type", "application/spdx+json", "--distribution-spec", "v1.1-referrers-api")

			s.must("oras", "tag", image+":1.0.0", "latest", "stable")
			same(t, "tags, of which none stands for the attachments", strings.Join(lines(s.must("oras", "repo", "tags", image)), " "), "1.0.0 latest stable")
			s.must("oras", "pull", image+":latest", "--output", "pulled")
			for _, name := range []string{"config.json", "data.bin"} {
				same(t, name, s.read("pulled/"+name), s.read(name))
			}
			s.must("oras", "cp", "--recursive", image+":1.0.0", image+"/copy:1.0.0")
			s.says("application/sarif+json", "oras", "discover", image+"/copy:1.0.0")
			s.must("oras", "cp", "--recursive", "--to-oci-layout", image+":1.0.0", "layout:kept")
			s.must("oras", "cp", "--recursive", "--from-oci-layout", "layout:kept", image+"/restored:1.0.0")
			same(t, "restored", s.must("oras", "resolve", image+"/restored:1.0.0"), digest)
			s.must("oras", "manifest", "index", "create", image+":index", "1.0.0", "--artifact-type", "application/vnd.example.index")
			s.says(digest, "oras", "manifest", "fetch", image+":index")
			s.must("oras", "blob", "push", image, "report.json")

			s.write("config.json", `{"a": 2}`)
			s.refused(immutable, "oras", "push", image+":1.0.0", "config.json")
			attached := image + "@" + found.Referrers[0].Digest
			if who == r.deployPusher { // which may push, and not delete
				s.refused(noDelete, "oras", "manifest", "delete", "--force", attached)
				return
			}
			s.refused(immutable, "oras", "manifest", "delete", "--force", image+"@"+digest)
			s.must("oras", "manifest", "delete", "--force", attached)
			left := s.must("oras", "discover", image+":1.0.0", "--format", "json")
			if strings.Contains(left, found.Referrers[0].Digest) || !strings.Contains(left, found.Referrers[1].Digest) {
				t.Errorf("attached after the removal of %s: %s", attached, left)
			}
		})
	}
	t.Run("refusals", func(t *testing.T) {
		s := r.shell(t)
		s.write("a.txt", "a")
		s.refused("HTTP Basic: Access denied", "oras", "login", r.host, "--username", "dev", "--password", "glpat-wrong")
		for _, who := range r.readers() {
			s.must("oras", "login", r.host, "--username", who.user, "--password", who.password)
			s.refused(who.why, "oras", "push", r.image+"/oras0:new", "a.txt")
			s.must("oras", "pull", r.image+"/oras0:1.0.0", "--output", who.user)
		}
		s.must("oras", "logout", r.host)
		s.refused(nobody, "oras", "pull", r.image+"/oras0:1.0.0")
	})
}

// TestHelm drives helm with charts, one of which depends on another.
func TestHelm(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	chart := func(s *shell, version, more string) string {
		s.write("shop/Chart.yaml", fmt.Sprintf("apiVersion: v2\nname: shop\nversion: %s\n%s", version, more))
		s.write("shop/templates/shop.yaml", fmt.Sprintf(configMap, "{{ .Chart.Version }}"))
		s.must("helm", "package", "shop")
		return "shop-" + version + ".tgz"
	}
	for i, who := range r.pushers() {
		t.Run(who.name, func(t *testing.T) {
			s := r.shell(t)
			s.must("helm", "registry", "login", r.host, "--username", who.user, "--password", who.password, "--ca-file", r.CAFile)
			charts := fmt.Sprintf("oci://%s/charts%d", r.image, i)
			for _, version := range []string{"1.0.0", "1.2.0", "1.3.0-rc.1", "2.0.0+build.7"} {
				s.says("Digest: sha256:", "helm", "push", chart(s, version, ""), charts, "--ca-file", r.CAFile)
			}
			s.says("version: 1.0.0", "helm", "show", "chart", charts+"/shop", "--version", "1.0.0", "--ca-file", r.CAFile)
			s.says("version: 1.2.0", "helm", "show", "chart", charts+"/shop", "--version", "^1.0.0", "--ca-file", r.CAFile)
			s.says("version: 2.0.0+build.7", "helm", "show", "chart", charts+"/shop", "--version", "2.0.0+build.7", "--ca-file", r.CAFile)
			s.must("helm", "pull", charts+"/shop", "--version", "1.0.0", "--untar", "--untardir", "pulled", "--ca-file", r.CAFile)
			s.says(`value: "1.2.0"`, "helm", "template", "x", charts+"/shop", "--version", "1.2.0", "--ca-file", r.CAFile)
			s.write("parent/Chart.yaml", "apiVersion: v2\nname: parent\nversion: 1.0.0\ndependencies:\n- {name: shop, version: ~1.2.0, repository: \""+charts+"\"}\n")
			s.must("helm", "dependency", "update", "parent")
			s.read("parent/charts/shop-1.2.0.tgz")

			s.refused(immutable, "helm", "push", chart(s, "1.0.0", "description: changed\n"), charts, "--ca-file", r.CAFile)
		})
	}
	t.Run("refusals", func(t *testing.T) {
		s := r.shell(t)
		s.refused("401", "helm", "registry", "login", r.host, "--username", "dev", "--password", "glpat-wrong", "--ca-file", r.CAFile)
		for _, who := range r.readers() {
			s.must("helm", "registry", "login", r.host, "--username", who.user, "--password", who.password, "--ca-file", r.CAFile)
			s.refused(who.why, "helm", "push", chart(s, "3.0.0", ""), "oci://"+r.image+"/charts0", "--ca-file", r.CAFile)
			s.must("helm", "pull", "oci://"+r.image+"/charts0/shop", "--version", "1.0.0", "--ca-file", r.CAFile)
		}
	})
}

// TestSkopeo drives skopeo between folders and the registry, and within it.
func TestSkopeo(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	for i, who := range r.pushers() {
		t.Run(who.name, func(t *testing.T) {
			s := r.shell(t)
			s.must("skopeo", "login", r.host, "--username", who.user, "--password", who.password)
			image := fmt.Sprintf("docker://%s/skopeo%d", r.image, i)
			s.layout("image", 4096)
			s.must("skopeo", "copy", "oci:image:test", image+":1.0.0")
			s.must("skopeo", "copy", "--format", "v2s2", "oci:image:test", image+":docker")
			s.must("skopeo", "copy", "--all", image+":1.0.0", image+"/copy:1.0.0")
			s.must("skopeo", "copy", "--preserve-digests", image+":1.0.0", "dir:pulled")
			digest := s.must("skopeo", "inspect", "--format", "{{.Digest}}", image+":1.0.0")
			same(t, "digest of the copy", s.must("skopeo", "inspect", "--format", "{{.Digest}}", image+"/copy:1.0.0"), digest)
			s.says("vnd.docker.distribution.manifest.v2+json", "skopeo", "inspect", "--raw", image+":docker")
			var listed struct{ Tags []string }
			if err := json.Unmarshal([]byte(s.must("skopeo", "list-tags", image)), &listed); err != nil {
				t.Fatal(err)
			}
			same(t, "tags", strings.Join(listed.Tags, " "), "1.0.0 docker")

			s.layout("other", 4096)
			s.refused(immutable, "skopeo", "copy", "oci:other:test", image+":1.0.0")
			if who == r.deployPusher { // which may push, and not delete
				s.refused(noDelete, "skopeo", "delete", image+":docker")
				return
			}
			s.must("skopeo", "delete", image+":docker")
			s.refused("manifest unknown", "skopeo", "inspect", image+":docker")
		})
	}
	t.Run("refusals", func(t *testing.T) {
		s := r.shell(t)
		s.layout("image", 64)
		s.refused("invalid username/password", "skopeo", "login", r.host, "--username", "dev", "--password", "glpat-wrong")
		for _, who := range r.readers() {
			s.must("skopeo", "login", r.host, "--username", who.user, "--password", who.password)
			s.refused(who.why, "skopeo", "copy", "oci:image:test", "docker://"+r.image+"/skopeo0:new")
			s.must("skopeo", "inspect", "docker://"+r.image+"/skopeo0:1.0.0")
		}
		s.must("skopeo", "logout", r.host)
		s.refused("403 (Forbidden)", "skopeo", "inspect", "docker://"+r.image+"/skopeo0:1.0.0")
	})
}

// TestCosign signs artifacts with keys of one's own, in both forms that cosign
// has, and verifies them.
func TestCosign(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	verify := []string{"cosign", "verify", "--insecure-ignore-tlog", "--private-infrastructure", "--key"}
	sign := []string{"cosign", "sign", "--tlog-upload=false", "--yes", "--key"}
	for i, who := range r.pushers() {
		t.Run(who.name, func(t *testing.T) {
			s := r.shell(t).dockerConfig(who)
			image := fmt.Sprintf("%s/cosign%d", r.image, i)
			s.write("deploy/shop.yaml", fmt.Sprintf(configMap, "signed"))
			s.must("flux", "push", "artifact", "oci://"+image+":1.0.0", "--path", "deploy", "--source", r.URL, "--revision", "main@sha1:"+strings.Repeat("a", 40))
			artifact := image + "@" + s.must("crane", "digest", image+":1.0.0")
			for _, name := range []string{"ours", "theirs"} {
				s.must("cosign", "generate-key-pair", "--output-key-prefix", name)
				s.refused("no ", append(verify, name+".pub", image+":1.0.0")...) // signatures, or none that match
				s.must(append(sign, name+".key", artifact)...)
				s.says(strings.TrimPrefix(artifact, image+"@"), append(verify, name+".pub", image+":1.0.0")...)
			}
			s.says("Signatures for an image tag", "cosign", "tree", image+":1.0.0")

			s.write("predicate.json", `{"tests": "passed"}`)
			s.must("cosign", "attest", "--tlog-upload=false", "--yes", "--key", "ours.key", "--type", "custom", "--predicate", "predicate.json", artifact)
			s.says("in-toto", "cosign", "verify-attestation", "--insecure-ignore-tlog", "--private-infrastructure", "--key", "ours.pub", "--type", "custom", image+":1.0.0")
			s.must("cosign", "copy", image+":1.0.0", image+"/copy:1.0.0")
			s.must(append(verify, "theirs.pub", image+"/copy:1.0.0")...)

			// As OCI 1.1 has it, attached and not under a tag.
			s.env = append(s.env, "COSIGN_EXPERIMENTAL=1")
			s.layer("layer.tar", 64)
			other := s.must("crane", "append", "--oci-empty-base", "--new_layer", "layer.tar", "--new_tag", image+"/attached:v1")
			s.must(append(sign, "ours.key", "--registry-referrers-mode=oci-1-1", other)...)
			s.must(append(verify, "ours.pub", "--experimental-oci11", image+"/attached:v1")...)
			s.says("vnd.dev.cosign.artifact.sig.v1+json", "oras", "discover", image+"/attached:v1")
			same(t, "tags", s.must("crane", "ls", image+"/attached"), "v1")
		})
	}
	// What the forge packages it signs; who has its public key can tell.
	t.Run("the forge's own", func(t *testing.T) {
		s := r.shell(t).dockerConfig(r.deployReader)
		var keys []struct {
			PublicKey string `json:"public_key"`
		}
		r.Call(http.MethodGet, "signing_keys", nil, &keys)
		s.write("forge.pub", keys[0].PublicKey)
		s.must("cosign", "generate-key-pair")
		commit := r.project.Push("main", map[string]string{
			".tidelock/delivery.yaml": "applications:\n- name: shop\n  path: shop\n",
			"shop/shop.yaml":          fmt.Sprintf(configMap, "packaged"),
		})
		image := r.image + "/shop:latest"
		e2e.Eventually(t, soon, func(context.Context) error {
			_, stderr, err := s.run("crane", "digest", image)
			if err != nil {
				return fmt.Errorf("%s is not packaged: %s", commit, stderr)
			}
			return nil
		})
		s.says(r.image+"/shop", append(verify, "forge.pub", image)...)
		s.refused("no matching signatures", append(verify, "cosign.pub", image)...)
		s.says("main@sha1:"+commit, "flux", "pull", "artifact", "oci://"+image, "--output", ".")
		same(t, "pulled", s.read("shop.yaml"), fmt.Sprintf(configMap, "packaged"))
	})
}
