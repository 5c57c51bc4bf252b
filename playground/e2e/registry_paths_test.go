package e2e_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pullers are commands that read an image, an artifact or a chart of it, each
// with another program.
func pullers(image string) map[string][]string {
	return map[string][]string{
		"flux":   {"flux", "pull", "artifact", "oci://" + image + "/deploy:v1", "--output", "."},
		"crane":  {"crane", "validate", "--remote", image + ":v1"},
		"oras":   {"oras", "pull", image + ":v1"},
		"helm":   {"helm", "show", "chart", "oci://" + image + "/charts/shop", "--version", "1.0.0"},
		"skopeo": {"skopeo", "copy", "docker://" + image + ":v1", "dir:copied"},
	}
}

// fill pushes what pullers read.
func (r *imageHost) fill(t *testing.T, image string) {
	t.Helper()
	s := r.shell(t).dockerConfig(login{"", "root", r.Token})
	s.write("deploy/shop.yaml", fmt.Sprintf(configMap, "1"))
	s.must("flux", "push", "artifact", "oci://"+image+"/deploy:v1", "--path", "deploy", "--source", r.URL, "--revision", "main@sha1:"+strings.Repeat("a", 40))
	s.layer("layer.tar", 4096)
	s.must("crane", "append", "--oci-empty-base", "--new_layer", "layer.tar", "--new_tag", image+":v1")
	s.write("shop/Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\n")
	s.must("helm", "package", "shop")
	s.must("helm", "push", "shop-1.0.0.tgz", "oci://"+image+"/charts")
}

// TestRegistryAnonymous reads a public project's images as nobody, with every
// program. A private project's are hidden, and nobody may push.
func TestRegistryAnonymous(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	r.Project("open/site", "public")
	public := r.host + "/open/site"
	r.fill(t, public)
	r.fill(t, r.image)
	for name, args := range pullers(public) {
		t.Run(name, func(t *testing.T) { r.shell(t).must(args...) })
	}
	for name, args := range pullers(r.image) {
		want := nobody
		if name == "skopeo" { // passes the status on, and not the reason
			want = "403 (Forbidden)"
		}
		t.Run(name+" of what is private", func(t *testing.T) { r.shell(t).refused(want, args...) })
	}
	s := r.shell(t)
	s.layout("image", 64)
	s.write("a.txt", "a")
	s.refused("UNAUTHORIZED", "crane", "push", "image", public+":v2")
	s.refused("sign in", "oras", "push", public+":v2", "a.txt")
	s.refused("unauthorized", "skopeo", "copy", "oci:image:test", "docker://"+public+":v2")

	// A password that is wrong is not taken for nobody's.
	s.dockerConfig(login{"", "dev", "glpat-wrong"})
	s.refused("HTTP Basic: Access denied", "crane", "digest", public+":v1")
	r.Call(http.MethodPut, "projects/open%2Fsite", map[string]any{"visibility": "private"}, nil)
	r.shell(t).refused(nobody, "crane", "digest", public+":v1")
}

// TestRegistryDockerConfig signs in with each form that a docker configuration
// may have, and with a token that is sent as it is.
func TestRegistryDockerConfig(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	r.fill(t, r.image)
	who := r.deployReader
	both := base64.StdEncoding.EncodeToString([]byte(who.user + ":" + who.password))
	for name, form := range map[string]struct {
		config string
		skip   string // programs that do not know the form
	}{
		"auth":              {dockerConfig(map[string]map[string]string{r.host: {"auth": both}}), ""},
		"user and password": {dockerConfig(map[string]map[string]string{r.host: {"username": who.user, "password": who.password}}), "oras helm skopeo"},
		"address":           {dockerConfig(map[string]map[string]string{"https://" + r.host: {"auth": both}}), "oras helm"},
		"address with path": {dockerConfig(map[string]map[string]string{"https://" + r.host + "/v2/": {"auth": both}}), "oras helm"},
	} {
		t.Run(name, func(t *testing.T) {
			s := r.shell(t)
			s.write(".docker/config.json", form.config)
			for program, args := range pullers(r.image) {
				if !strings.Contains(form.skip, program) {
					s.must(args...)
				}
			}
		})
	}
	t.Run("credential helper", func(t *testing.T) {
		s := r.shell(t)
		s.write("bin/docker-credential-forge", "#!/bin/sh\n[ \"$1\" = get ] || exit 1\n"+
			fmt.Sprintf(`echo '{"ServerURL":"%s","Username":"%s","Secret":"%s"}'`, r.host, who.user, who.password)+"\n")
		if err := os.Chmod(filepath.Join(s.dir, "bin/docker-credential-forge"), 0o755); err != nil {
			t.Fatal(err)
		}
		s.env = append(s.env, "PATH="+filepath.Join(s.dir, "bin")+":"+os.Getenv("PATH"))
		s.write(".docker/config.json", fmt.Sprintf(`{"credHelpers":{%q:"forge"}}`, r.host))
		for _, args := range pullers(r.image) {
			s.must(args...)
		}
	})
	t.Run("agent", func(t *testing.T) {
		s := r.shell(t)
		var agent struct{ ID int64 }
		r.Call(http.MethodPost, fmt.Sprintf("projects/%d/cluster_agents", r.project.ID), map[string]any{"name": "puller"}, &agent)
		var token struct{ Token string }
		r.Call(http.MethodPost, fmt.Sprintf("projects/%d/cluster_agents/%d/tokens", r.project.ID, agent.ID), map[string]any{"name": "registry"}, &token)
		s.dockerConfig(login{"agent", "agent", token.Token})
		for _, args := range pullers(r.image) {
			s.must(args...)
		}
		s.refused("DENIED", "crane", "tag", r.image+":v1", "v2")
		r.Project("other/site", "private")
		r.fill(t, r.host+"/other/site")
		s.refused("NAME_UNKNOWN", "crane", "manifest", r.host+"/other/site:v1")
	})
	t.Run("registry token", func(t *testing.T) {
		s := r.shell(t)
		reply := curl(t, r.Forge, r.URL+"/jwt/auth?service=container_registry&scope=repository:team/web-shop/deploy:pull", "--user", who.user+":"+who.password)
		var given struct{ Token string }
		wantStatus(t, "token", reply, 200).decode(t, &given)
		s.must(append(pullers(r.image)["flux"], "--creds", given.Token)...)
		s.must(append(pullers(r.image)["flux"], "--creds", r.developer.password)...)
		s.write(".docker/config.json", dockerConfig(map[string]map[string]string{r.host: {"registrytoken": given.Token}}))
		s.must("crane", "digest", r.image+"/deploy:v1")
		// It was asked for one image.
		s.refused("UNAUTHORIZED", "crane", "digest", r.image+":v1")
	})
}

// TestRegistryPaths follows a project whose path has capitals, which names in
// the registry have not, to another path: a client that knows the old one goes
// on, and so do tokens that were asked for under it.
func TestRegistryPaths(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	r.fill(t, r.image)
	as := "dev:" + r.developer.password
	s := r.shell(t).dockerConfig(r.developer)
	s.layer("layer.tar", 4096)
	digest := s.must("crane", "digest", r.image+":v1")

	t.Run("capitals", func(t *testing.T) {
		s := s.in(t)
		s.refused("", "crane", "digest", r.host+"/Team/Web-Shop:v1") // by crane itself
		for path, status := range map[string]int{"team/web-shop": 200, "Team/Web-Shop": 400, "TEAM/web-shop": 400} {
			wantStatus(t, path, curl(t, r.Forge, r.URL+"/v2/"+path+"/tags/list", "--user", as), status)
		}
		// A second project cannot take the name in small letters.
		err := r.API(t.Context(), http.MethodPost, "projects", map[string]any{"name": "other", "path": "web-shop", "namespace_id": r.namespace(t)}, nil)
		if err == nil {
			t.Error("a project with the same path in small letters was made")
		}
	})
	t.Run("renamed", func(t *testing.T) {
		s := s.in(t)
		var before struct{ Token string }
		reply := curl(t, r.Forge, r.URL+"/jwt/auth?service=container_registry&scope=repository:team/web-shop:pull,push", "--user", as)
		wantStatus(t, "token", reply, 200).decode(t, &before)

		// An upload is under way while the project moves.
		begun := wantStatus(t, "begin", curl(t, r.Forge, r.URL+"/v2/team/web-shop/blobs/uploads/", "--request", "POST", "--oauth2-bearer", before.Token), 202)
		r.Call(http.MethodPut, fmt.Sprintf("projects/%d", r.project.ID), map[string]any{"path": "Shop"}, nil)
		s.write("blob", "half of it, and the other half")
		sum := sha256.Sum256([]byte(s.read("blob")))
		location := absolute(r.URL, begun.header.Get("Location"))
		wantStatus(t, "finish", curl(t, r.Forge, location+joiner(location)+"digest=sha256:"+hex.EncodeToString(sum[:]), "--request", "PUT",
			"--oauth2-bearer", before.Token, "--header", "Content-Type: application/octet-stream", "--data-binary", "@"+filepath.Join(s.dir, "blob")), 201)

		moved := r.host + "/team/shop"
		for _, image := range []string{r.image, moved} {
			same(t, image, s.must("crane", "digest", image+":v1"), digest)
			for program, args := range pullers(image) {
				if _, stderr, err := s.run(args...); err != nil {
					t.Errorf("%s with %s: %v: %s", program, image, err, stderr)
				}
			}
		}
		s.must("crane", "append", "--oci-empty-base", "--new_layer", "layer.tar", "--new_tag", r.image+":pushed-to-the-old-path")
		s.must("crane", "append", "--oci-empty-base", "--new_layer", "layer.tar", "--new_tag", moved+"/new:pushed-to-the-new-path")
		same(t, "tags", strings.Join(lines(s.must("crane", "ls", moved)), " "), "pushed-to-the-old-path v1")
		same(t, "tags by the old path", strings.Join(lines(s.must("crane", "ls", r.image+"/new")), " "), "pushed-to-the-new-path")
	})
	// Clients do not follow a realm to another host, or to an address.
	t.Run("realm", func(t *testing.T) {
		s := s.in(t)
		for _, host := range []string{r.host, strings.Replace(r.host, "localhost", "127.0.0.1", 1)} {
			challenge := wantStatus(t, host, curl(t, r.Forge, "https://"+host+"/v2/"), 401).header.Get("Www-Authenticate")
			same(t, "challenge", challenge, `Bearer realm="https://`+host+`/jwt/auth",service="container_registry"`)
		}
		byAddress := strings.Replace(r.host, "localhost", "127.0.0.1", 1)
		s.must("crane", "auth", "login", byAddress, "--username", "dev", "--password", r.developer.password)
		s.must("crane", "digest", byAddress+"/team/shop:v1")
		// HTTP/1.0 names no host: there is nothing but the forge's own address.
		wantStatus(t, "no host", curl(t, r.Forge, r.URL+"/v2/", "--http1.0", "--no-alpn", "--header", "Host:"), 401)
	})
}

// namespace is the id of the project's group.
func (r *imageHost) namespace(t *testing.T) int64 {
	t.Helper()
	var project struct{ Namespace struct{ ID int64 } }
	r.Call(http.MethodGet, fmt.Sprintf("projects/%d", r.project.ID), nil, &project)
	return project.Namespace.ID
}

// absolute is where a Location leads.
func absolute(base, location string) string {
	if strings.HasPrefix(location, "/") {
		return base + location
	}
	return location
}

// joiner is what stands before another parameter of an address.
func joiner(address string) string {
	if strings.Contains(address, "?") {
		return "&"
	}
	return "?"
}

// TestRegistryLargeLayer moves a layer of 64 MiB and something in each way that
// clients have: in one PUT, in one PATCH, in a PATCH without a length, and in
// parts, of which one is sent again after its answer was lost.
func TestRegistryLargeLayer(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	s := r.shell(t).dockerConfig(r.developer)
	const size = 64<<20 + 4321
	s.layout("large", size)
	s.must("skopeo", "copy", "oci:large:test", "docker://"+r.image+"/skopeo:v1") // chunked
	s.must("crane", "push", "large", r.image+"/crane:v1")                        // one PATCH
	s.must("oras", "cp", "--from-oci-layout", "large:test", r.image+"/oras:v1")  // one PUT
	for _, program := range []string{"skopeo", "crane", "oras"} {
		s.says("PASS", "crane", "validate", "--remote", r.image+"/"+program+":v1")
	}
	s.must("oras", "pull", r.image+"/skopeo:v1")

	// By hand, in parts of 16 MiB, as docker's registry documents it.
	path := filepath.Join(s.dir, "large.layer.content")
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		t.Fatal(err)
	}
	digest := "sha256:" + hex.EncodeToString(hash.Sum(nil))
	developer := "dev:" + r.developer.password
	at := curl(t, r.Forge, r.URL+"/v2/team/web-shop/parts/blobs/uploads/", "--request", "POST", "--user", developer)
	location := absolute(r.URL, wantStatus(t, "begin", at, 202).header.Get("Location"))
	part := make([]byte, 16<<20)
	send := func(from int64, text []byte) reply {
		s.write("part", string(text))
		// Over HTTP/1.1 curl waits for leave to send. Over HTTP/2 it may lose an
		// answer that comes while it sends.
		return curl(t, r.Forge, location, "--request", "PATCH", "--http1.1", "--user", developer, "--header", "Content-Type: application/octet-stream",
			"--header", fmt.Sprintf("Content-Range: %d-%d", from, from+int64(len(text))-1), "--data-binary", "@"+filepath.Join(s.dir, "part"))
	}
	for from := int64(0); from < size; {
		n, err := file.ReadAt(part, from)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		sent := wantStatus(t, "part", send(from, part[:n]), 202)
		same(t, "range", sent.header.Get("Range"), fmt.Sprintf("0-%d", from+int64(n)-1))
		location = absolute(r.URL, sent.header.Get("Location"))
		if from == 0 { // sent twice
			wantStatus(t, "the same part again", send(from, part[:n]), 416)
			status := wantStatus(t, "status", curl(t, r.Forge, location, "--user", developer), 204)
			same(t, "range after that", status.header.Get("Range"), fmt.Sprintf("0-%d", n-1))
			location = absolute(r.URL, status.header.Get("Location"))
		}
		from += int64(n)
	}
	finish := curl(t, r.Forge, location+joiner(location)+"digest="+digest, "--request", "PUT", "--user", developer)
	wantStatus(t, "finish", finish, 201)
	same(t, "digest", finish.header.Get("Docker-Content-Digest"), digest)
	head := wantStatus(t, "HEAD", curl(t, r.Forge, r.URL+"/v2/team/web-shop/parts/blobs/"+digest, "--head", "--user", developer), 200)
	same(t, "length", head.header.Get("Content-Length"), fmt.Sprint(size))
}
