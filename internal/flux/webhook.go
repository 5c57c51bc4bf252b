package flux

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"tidelock.dev"
)

// DefaultWebhookURL is where a stock Flux serves its receivers.
const DefaultWebhookURL = "http://webhook-receiver.flux-system.svc.cluster.local"

var serviceProxy = regexp.MustCompile(`^/api/v1/namespaces/[^/]+/services/[^/]+/proxy(/.*)?$`)

// A webhookURL is the base of the receivers' addresses: a server of its own,
// or a service reached through the Kubernetes API server with the agent's
// credentials. Which of the two is decided here and nowhere else.
type webhookURL struct {
	base    string // without a trailing slash
	proxied bool   // base is a path on the API server
}

// parseWebhookURL reads flux.webhook_receiver_url. Only a path of exactly the
// service-proxy form goes to the API server: whoever can edit the file must
// not be able to aim the agent's credentials at anything else.
func parseWebhookURL(text string) (webhookURL, error) {
	if text == "" {
		text = DefaultWebhookURL
	}
	if strings.HasPrefix(text, "/") {
		if err := checkServiceProxy(text); err != nil {
			return webhookURL{}, tidelock.Errorf(tidelock.Invalid, "flux.webhook_receiver_url %q: %v", text, err)
		}
		return webhookURL{base: strings.TrimSuffix(text, "/"), proxied: true}, nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return webhookURL{}, tidelock.Errorf(tidelock.Invalid, "flux.webhook_receiver_url is not a URL")
	case u.User != nil:
		return webhookURL{}, tidelock.Errorf(tidelock.Invalid, "flux.webhook_receiver_url must not hold credentials")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return webhookURL{}, tidelock.Errorf(tidelock.Invalid, "flux.webhook_receiver_url %q must begin with http://, https:// or be a service's proxy path", text)
	case u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return webhookURL{}, tidelock.Errorf(tidelock.Invalid, "flux.webhook_receiver_url %q must not have a query or fragment", text)
	}
	return webhookURL{base: strings.TrimRight(u.String(), "/")}, nil
}

func checkServiceProxy(path string) error {
	if !serviceProxy.MatchString(path) {
		return errors.New("a path must have the form /api/v1/namespaces/NAMESPACE/services/SERVICE/proxy")
	}
	for _, bad := range []string{"..", "//", "%", "?", "#", "\\"} {
		if strings.Contains(path, bad) {
			return fmt.Errorf("must not contain %q", bad)
		}
	}
	for _, c := range path {
		if c <= ' ' || c > '~' {
			return errors.New("must be printable ASCII")
		}
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." {
			return errors.New("must not contain the segment \".\"")
		}
	}
	return nil
}
