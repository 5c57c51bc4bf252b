package servertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"tidelock.dev"
)

// An OCI is a client of a registry that knows the protocol but no manners: it
// sends what it is told to, and gives back what came. It asks for the tokens
// that the registry wants, and is safe for concurrent use.
type OCI struct {
	URL                string // of the registry, without /v2/
	HTTP               *http.Client
	Username, Password string // "" for nobody

	mu     sync.Mutex
	tokens map[string]string // by image
}

// OCI returns a client of the server's registry that acts for a token.
func (s *Server) OCI(username, password string) *OCI {
	return &OCI{URL: s.URL, HTTP: s.client, Username: username, Password: password}
}

// Do makes a request to a path below /v2/, such as "team/site/tags/list", or to
// a whole path or URL that the registry gave. An error is one of the
// connection; whatever the registry answers is a Response.
func (c *OCI) Do(ctx context.Context, method, path string, body io.Reader, header ...string) (Response, error) {
	image := imageOf(path)
	c.mu.Lock()
	token := c.tokens[image]
	c.mu.Unlock()
	answer, err := c.send(ctx, method, path, token, body, header)
	if err != nil || answer.Status != http.StatusUnauthorized || token != "" && answer.Header.Get("WWW-Authenticate") == "" {
		return answer, err
	}
	if body != nil {
		again, ok := body.(io.Seeker)
		if !ok {
			return answer, nil
		}
		if _, err := again.Seek(0, io.SeekStart); err != nil {
			return answer, nil
		}
	}
	token, refused, err := c.Token(ctx, answer.Header.Get("WWW-Authenticate"))
	if err != nil || refused.Status != 0 {
		return refused, err
	}
	c.mu.Lock()
	if c.tokens == nil {
		c.tokens = map[string]string{}
	}
	c.tokens[image] = token
	c.mu.Unlock()
	return c.send(ctx, method, path, token, body, header)
}

var (
	imagePath   = regexp.MustCompile(`^(?:.*/v2/)?(.+)/(?:manifests|blobs|tags|referrers)/`)
	challengeOf = regexp.MustCompile(`(realm|service|scope)="([^"]*)"`)
)

func imageOf(path string) string {
	if found := imagePath.FindStringSubmatch(path); found != nil {
		return found[1]
	}
	return ""
}

func (c *OCI) send(ctx context.Context, method, path, token string, body io.Reader, header []string) (Response, error) {
	address := path
	switch {
	case strings.HasPrefix(path, "/"):
		address = c.URL + path
	case !strings.Contains(path, "://"):
		address = c.URL + "/v2/" + path
	}
	r, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return Response{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	if token != "" && r.Header.Get("Authorization") == "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return c.answer(r)
}

func (c *OCI) answer(r *http.Request) (Response, error) {
	answer, err := c.HTTP.Do(r)
	if err != nil {
		return Response{}, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return Response{}, fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, err)
	}
	return Response{answer.StatusCode, answer.Header, string(text)}, nil
}

// Token gets the token that a challenge asks for. What refuses it is the
// Response.
func (c *OCI) Token(ctx context.Context, challenge string) (string, Response, error) {
	values := map[string]string{}
	for _, part := range challengeOf.FindAllStringSubmatch(challenge, -1) {
		values[part[1]] = part[2]
	}
	query := url.Values{"service": {values["service"]}}
	if values["scope"] != "" {
		query.Set("scope", values["scope"])
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, values["realm"]+"?"+query.Encode(), nil)
	if err != nil {
		return "", Response{}, err
	}
	if c.Password != "" {
		r.SetBasicAuth(c.Username, c.Password)
	}
	answer, err := c.answer(r)
	if err != nil || answer.Status != http.StatusOK {
		return "", answer, err
	}
	var given struct{ Token string }
	if err := json.Unmarshal([]byte(answer.Body), &given); err != nil {
		return "", Response{}, fmt.Errorf("read a token: %w", err)
	}
	return given.Token, Response{}, nil
}

// PutBlob uploads a blob, unless the registry has it. An answer other than 201
// is returned as it is, with an error.
func (c *OCI) PutBlob(ctx context.Context, image string, content []byte) (Response, error) {
	started, err := c.Do(ctx, http.MethodPost, image+"/blobs/uploads/", nil)
	if err != nil || started.Status != http.StatusAccepted {
		return refusal("start an upload", started, err)
	}
	location, err := c.Location(started)
	if err != nil {
		return started, err
	}
	query := location.Query()
	query.Set("digest", string(tidelock.DigestOf(content)))
	location.RawQuery = query.Encode()
	put, err := c.Do(ctx, http.MethodPut, location.String(), bytes.NewReader(content), "Content-Type", "application/octet-stream")
	if err != nil || put.Status != http.StatusCreated {
		return refusal("upload a blob", put, err)
	}
	return put, nil
}

// Location is where an answer leads.
func (c *OCI) Location(answer Response) (*url.URL, error) {
	base, err := url.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	to, err := url.Parse(answer.Header.Get("Location"))
	if err != nil || to.String() == "" {
		return nil, fmt.Errorf("the answer %d leads to %q: %v", answer.Status, answer.Header.Get("Location"), err)
	}
	return base.ResolveReference(to), nil
}

// PutManifest pushes a manifest under a tag or digest.
func (c *OCI) PutManifest(ctx context.Context, image, reference, mediaType string, body []byte) (Response, error) {
	return c.Do(ctx, http.MethodPut, image+"/manifests/"+reference, bytes.NewReader(body), "Content-Type", mediaType)
}

// Push pushes an artifact of one layer, as Flux would, and returns its digest.
// An answer other than 201 is returned as it is, with an error.
func (c *OCI) Push(ctx context.Context, image, tag string, layer []byte) (tidelock.Digest, Response, error) {
	config := []byte("{}")
	for _, blob := range [][]byte{config, layer} {
		if answer, err := c.PutBlob(ctx, image, blob); err != nil {
			return "", answer, err
		}
	}
	body := ManifestOf(config, layer)
	answer, err := c.PutManifest(ctx, image, tag, tidelock.MediaTypeManifest, body)
	if err != nil || answer.Status != http.StatusCreated {
		answer, err = refusal("push a manifest", answer, err)
	}
	return tidelock.DigestOf(body), answer, err
}

// ManifestOf is the manifest of an artifact as Flux makes them.
func ManifestOf(config []byte, layers ...[]byte) []byte {
	type descriptor struct {
		MediaType string          `json:"mediaType"`
		Digest    tidelock.Digest `json:"digest"`
		Size      int             `json:"size"`
	}
	manifest := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, tidelock.MediaTypeManifest, descriptor{tidelock.MediaTypeFluxConfig, tidelock.DigestOf(config), len(config)}, []descriptor{}}
	for _, layer := range layers {
		manifest.Layers = append(manifest.Layers, descriptor{tidelock.MediaTypeFluxContent, tidelock.DigestOf(layer), len(layer)})
	}
	body, err := json.Marshal(manifest)
	if err != nil {
		panic(err) // it is made of strings and numbers
	}
	return body
}

func refusal(what string, answer Response, err error) (Response, error) {
	if err == nil {
		err = fmt.Errorf("%s: got %d %s", what, answer.Status, answer.Body)
	}
	return answer, err
}
