package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/spf13/cobra"

	"tidelock.dev"
)

func newArtifactCommand(env *environment) *cobra.Command {
	cmd := parent("artifact", "Push, pull and verify OCI artifacts for Flux", `
An artifact is a folder of manifests in a registry, in the form Flux reads. It
is named by a URL such as oci://forge.example/team/shop/web:latest, where
team/shop is a project and web an image of it.

The token of the server that the command line, the environment or the current
context names is used for that server's registry, and in a CI/CD job that of
the job for the job's; any other registry is asked with what "docker login" has
kept. A username is needed with deploy tokens alone.`)
	var flags artifactFlags
	flags.add(cmd)
	cmd.AddCommand(
		newArtifactPushCommand(env, &flags),
		newArtifactPullCommand(env, &flags),
		newArtifactListCommand(env, &flags),
		newArtifactTagCommand(env, &flags),
		newArtifactInspectCommand(env, &flags),
		newArtifactVerifyCommand(env, &flags),
		newArtifactKeyCommand(env, &flags),
		newArtifactRuleCommand(env, &flags),
	)
	return cmd
}

type artifactFlags struct {
	sourceFlags
	username string
}

func (f *artifactFlags) add(cmd *cobra.Command) {
	f.sourceFlags.add(cmd)
	cmd.PersistentFlags().StringVar(&f.username, "username", "", "user name that goes with the token, of deploy tokens")
}

// A remoteImage is an image of a registry, or one artifact of it, and how it
// is reached.
type remoteImage struct {
	ref     name.Reference
	source  source // how its registry is reached; without a token for those of others
	options []remote.Option
}

// open reads the URL of an artifact.
func (f *artifactFlags) open(ctx context.Context, env *environment, text string) (*remoteImage, error) {
	rest, hasScheme := strings.CutPrefix(text, "oci://")
	host, path, _ := strings.Cut(rest, "/")
	if !hasScheme && strings.Contains(text, "://") || path == "" || strings.Contains(host, "@") || host != "localhost" && !strings.ContainsAny(host, ".:") {
		return nil, misusef("%q is not like oci://forge.example/group/project:tag", text)
	}
	s, err := f.registrySource(env, host)
	if err != nil {
		return nil, err
	}
	plain := strings.HasPrefix(s.URL, "http://")
	var names []name.Option
	if plain {
		names = append(names, name.Insecure)
	}
	ref, err := name.ParseReference(rest, names...)
	if err != nil {
		if strings.ToLower(path) != path {
			return nil, misusef("%q cannot be the name of an artifact: write it in lower case", text)
		}
		return nil, misusef("%q cannot be the name of an artifact: %v", text, shortReason(err))
	}
	client, err := s.httpClient()
	if err != nil {
		return nil, err
	}
	auth, err := f.credential(env, s, ref)
	if err != nil {
		return nil, err
	}
	return &remoteImage{ref: ref, source: s, options: []remote.Option{
		remote.WithContext(ctx), remote.WithAuth(auth), remote.WithUserAgent("tidelock/" + buildVersion()),
		remote.WithTransport(&registryGuard{host: host, plain: plain, next: client.Transport}),
	}}, nil
}

// registrySource is how a registry is reached: as the server that is named, if
// it is that server's, and else without a token.
func (f *artifactFlags) registrySource(env *environment, host string) (source, error) {
	other := source{URL: "https://" + host, from: "the registry"}
	flags := f.sourceFlags
	switch {
	case flags.url == "" && flags.context == "" && flags != (sourceFlags{}):
		// A token or CA on the command line is for the registry that is, too.
		other.Token, other.CAFile, other.from = tidelock.NewSecret(flags.token), flags.caFile, "the command line"
		return other, nil
	case flags == (sourceFlags{}) && env.getenv("TIDELOCK_URL") == "" && env.getenv("TIDELOCK_TOKEN") == "" && env.getenv("TIDELOCK_CA_FILE") == "":
		contexts, err := loadContexts(env)
		if err != nil {
			return source{}, err
		}
		if contexts.Current == "" {
			return other, nil // docker may know it
		}
	}
	s, err := flags.source(env)
	if err != nil {
		return source{}, err
	}
	if u, err := url.Parse(s.URL); err != nil || !strings.EqualFold(u.Host, host) {
		return other, nil
	}
	return s, nil
}

// credential is what the registry is asked with.
func (f *artifactFlags) credential(env *environment, s source, ref name.Reference) (authn.Authenticator, error) {
	if token := s.Token.Reveal(); token != "" {
		user := f.username
		if user == "" {
			user = "oauth2"
		}
		return &authn.Basic{Username: user, Password: token}, nil
	}
	registry := ref.Context().Registry
	if env.getenv("CI_REGISTRY") == registry.RegistryStr() && env.getenv("CI_JOB_TOKEN") != "" {
		return &authn.Basic{Username: "gitlab-ci-token", Password: env.getenv("CI_JOB_TOKEN")}, nil
	}
	auth, err := authn.DefaultKeychain.Resolve(registry)
	if err != nil {
		return nil, fmt.Errorf("read docker's configuration: %w", err)
	}
	return auth, nil
}

// A registryGuard keeps credentials where they belong: a registry may send
// clients to another server for content, but not with a token for itself, and
// never back to plain HTTP.
type registryGuard struct {
	host  string
	plain bool
	next  http.RoundTripper
}

func (g *registryGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	switch {
	case r.URL.Scheme != "https" && !g.plain:
		return nil, fmt.Errorf("the registry %s leads to %s, which is not encrypted", g.host, r.URL.Host)
	case !strings.EqualFold(r.URL.Host, g.host) && carriesCredential(r):
		return nil, fmt.Errorf("the registry %s wants the token to be sent to %s; it is not", g.host, r.URL.Host)
	}
	answer, err := g.next.RoundTrip(r)
	if err == nil && !strings.Contains(r.URL.Path, "/blobs/") && strings.EqualFold(r.URL.Host, g.host) {
		answer.Body = &boundedBody{ReadCloser: answer.Body, left: maxAnswer}
	}
	return answer, err
}

// carriesCredential reports whether a request has a token in its header or, as
// docker's identity tokens are sent, in a form.
func carriesCredential(r *http.Request) bool {
	return r.Header.Get("Authorization") != "" || strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded")
}

// maxAnswer is more than any answer of a registry that is not content.
const maxAnswer = 16 << 20

// A boundedBody is one that is not read for ever.
type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("the registry's answer is longer than %d bytes", maxAnswer)
	}
	return n, err
}

// explain turns an error of the registry into one that says what to do next.
func (i *remoteImage) explain(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*transport.Error](err); ok {
		return i.explainAnswer(e)
	}
	if _, ok := errors.AsType[net.Error](err); ok || errors.Is(err, net.ErrClosed) {
		return (&connection{source: i.source}).explain(i.String(), err)
	}
	return err
}

func (i *remoteImage) explainAnswer(e *transport.Error) error {
	text := http.StatusText(e.StatusCode)
	for _, d := range e.Errors {
		if d.Message != "" {
			text = d.Message
			break
		}
	}
	switch e.StatusCode {
	case http.StatusUnauthorized:
		return tidelock.Errorf(tidelock.Unauthenticated, `%s wants a token that may do this: %s; set TIDELOCK_TOKEN, or sign in with "docker login"`, i.host(), text)
	case http.StatusForbidden:
		return tidelock.Errorf(tidelock.Denied, "not allowed: %s", text)
	case http.StatusNotFound:
		return tidelock.Errorf(tidelock.NotFound, "there is no %s, or it is not visible with this token", i)
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return tidelock.Errorf(tidelock.Unavailable, "%s is not ready: %s; try again", i.host(), text)
	}
	return fmt.Errorf("%s refuses this: %s", i.host(), text)
}

func (i *remoteImage) host() string { return i.ref.Context().RegistryStr() }

// String is the URL of the artifact.
func (i *remoteImage) String() string { return "oci://" + i.ref.Name() }

// image is the name without tag and digest.
func (i *remoteImage) image() string { return i.ref.Context().Name() }

func (i *remoteImage) digest(d tidelock.Digest) name.Digest { return i.ref.Context().Digest(string(d)) }

// shortReason is the first line of what the library says of a name.
func shortReason(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
