// Package agent holds the manifests that install an agent in a cluster. They
// ask for the rights the agent uses and no others. It only writes YAML; it
// never talks to a cluster.
//
//	err := agent.Render(os.Stdout, agent.Values{Namespace: "tidelock-agent", …})
package agent

import (
	"bytes"
	"cmp"
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
	"text/template"

	"tidelock.dev"
)

// DefaultReplicas is how many replicas run: one leads, one stands by.
const DefaultReplicas = 2

// Values are what differs between installations.
type Values struct {
	Namespace string          // required; is created
	AgentName string          // required; the agent's name at the forge
	ServerURL string          // required; the forge's URL
	Token     tidelock.Secret // required; the agent's, glagent-…
	CA        []byte          // PEM of the forge's certificate authority; empty for a public one
	Image     string          // required; has the command tidelock
	Replicas  int             // default DefaultReplicas
}

//go:embed manifest.yaml.tmpl
var source string

var manifest = template.Must(template.New("manifest.yaml").
	Option("missingkey=error").
	Funcs(template.FuncMap{"quote": quote, "base64": encode}).
	Parse(source))

// Render writes the manifests, ready for kubectl apply. It writes nothing if
// a value is wrong, and then reports all that are.
func Render(w io.Writer, v Values) error {
	if err := v.validate(); err != nil {
		return err
	}
	v.Replicas = cmp.Or(v.Replicas, DefaultReplicas)
	var text bytes.Buffer
	if err := manifest.Execute(&text, v); err != nil {
		return fmt.Errorf("render the agent's manifests: %w", err)
	}
	_, err := text.WriteTo(w)
	return err
}

// ServiceAccount is the account that the rendered agent runs as.
const ServiceAccount = "tidelock-agent"

// ServiceAccount is there for the template.
func (Values) ServiceAccount() string { return ServiceAccount }

// ClusterRole is the name of the cluster-wide rights, which the namespace
// keeps apart from those of other installations.
func (v Values) ClusterRole() string { return "tidelock-agent-" + v.Namespace }

var (
	label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	image = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}$`)
)

func (v Values) validate() error {
	var problems []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, tidelock.Errorf(tidelock.Invalid, format, args...))
		}
	}
	require(label.MatchString(v.Namespace), "namespace %q must be a lower-case name of at most 63 letters, digits and hyphens", v.Namespace)
	require(label.MatchString(v.AgentName), "agent %q must be a lower-case name of at most 63 letters, digits and hyphens", v.AgentName)
	require(image.MatchString(v.Image), "image %q is not the name of an image", v.Image)
	require(v.Replicas >= 0, "replicas must not be negative")
	require(v.Token.Reveal() != "", "a token is required")
	u, err := url.Parse(v.ServerURL)
	require(err == nil && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" &&
		(u.Scheme == "https" || u.Scheme == "wss" || u.Scheme == "http" || u.Scheme == "ws"),
		"the server's URL must be an https URL without credentials, query or fragment")
	require(len(v.CA) == 0 || validCA(v.CA), "the CA must be PEM with certificates in it, and nothing else")
	return errors.Join(problems...)
}

// validCA reports whether text is certificates only: a private key that was
// put beside them must not end up in a cluster.
func validCA(text []byte) bool {
	for found := false; ; found = true {
		block, rest := pem.Decode(text)
		if block == nil {
			return found && strings.TrimSpace(string(text)) == ""
		}
		if _, err := x509.ParseCertificate(block.Bytes); block.Type != "CERTIFICATE" || err != nil {
			return false
		}
		text = rest
	}
}

// quote writes a string so that YAML reads exactly that string: JSON's
// strings are YAML's double-quoted ones.
func quote(s string) (string, error) {
	text, err := json.Marshal(s)
	return string(text), err
}

func encode(value any) (string, error) {
	switch v := value.(type) {
	case tidelock.Secret:
		return base64.StdEncoding.EncodeToString([]byte(v.Reveal())), nil
	case []byte:
		return base64.StdEncoding.EncodeToString(v), nil
	}
	return "", fmt.Errorf("encode a %T", value)
}
