package gitlabapi

import (
	"cmp"
	"net/http"
	"net/url"

	"tidelock.dev/internal/forge"
)

type version struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
}

type metadata struct {
	version
	KAS        agentServer `json:"kas"`
	Enterprise bool        `json:"enterprise"`
	SSH        *sshServer  `json:"ssh"` // ours; null when git over SSH is not served here
}

// An sshServer says how git over SSH is reached, and how it is known.
type sshServer struct {
	URL        string `json:"url"`
	KnownHosts string `json:"knownHosts"`
}

// An agentServer says where agents and users of clusters connect.
type agentServer struct {
	Enabled             bool   `json:"enabled"`
	ExternalURL         string `json:"externalUrl"`
	ExternalK8sProxyURL string `json:"externalK8sProxyUrl"`
	Version             string `json:"version"`
}

func newMetadata(external url.URL, number, revision, agentVersion string) metadata {
	proxy := external.JoinPath("-/kubernetes-agent/k8s-proxy/")
	agents := external.JoinPath("-/kubernetes-agent/")
	agents.Scheme = "wss"
	if external.Scheme == "http" {
		agents.Scheme = "ws"
	}
	return metadata{
		version: version{Version: number, Revision: revision},
		KAS: agentServer{
			Enabled: true, ExternalURL: agents.String(), ExternalK8sProxyURL: proxy.String(),
			Version: cmp.Or(agentVersion, number),
		},
	}
}

func (a *API) showVersion(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.ReadVersion, forge.OnForge); err != nil {
		return err
	}
	return ok(w, a.meta.version)
}

func (a *API) showMetadata(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.ReadVersion, forge.OnForge); err != nil {
		return err
	}
	return ok(w, a.meta)
}
