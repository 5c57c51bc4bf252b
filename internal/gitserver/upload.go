package gitserver

import (
	"context"
	"net/http"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// maxFetchRequest bounds one round of a fetch's negotiation: a line for each
// commit that the client has or wants.
const maxFetchRequest = 64 << 20

// advertiseUpload tells a client that fetches what there is.
func (s *Server) advertiseUpload(w http.ResponseWriter, r *http.Request, project tidelock.Project) error {
	x := s.exchange(w, r, uploadPack.advertisementType())
	preface := appendPacket(nil, "# service=", string(uploadPack), "\n")
	preface = append(preface, flushPacket...)
	protocol := r.Header.Get("Git-Protocol")
	if protocol == "version=2" {
		preface = nil // git's own server leaves it out
	}
	return s.fetch(r.Context(), x, project, gitrepo.PackRequest{Advertise: true, Protocol: protocol, Out: &prefixed{x, preface}})
}

// upload serves one round of a fetch.
func (s *Server) upload(w http.ResponseWriter, r *http.Request, project tidelock.Project) error {
	x := s.exchange(w, r, uploadPack.resultType())
	body, err := x.request(r, maxFetchRequest)
	if err != nil {
		return err
	}
	return s.fetch(r.Context(), x, project, gitrepo.PackRequest{Protocol: r.Header.Get("Git-Protocol"), In: body, Out: x})
}

// fetch lets git serve a fetch, or a part of one.
func (s *Server) fetch(ctx context.Context, to client, project tidelock.Project, req gitrepo.PackRequest) error {
	ctx, cancel := context.WithTimeout(ctx, s.longest)
	defer cancel()
	err := s.repos.Repo(project.ID).UploadPack(ctx, req)
	_, sent := to.moved()
	s.metrics.sent.Add(float64(sent))
	if err != nil && !to.answered() {
		return err
	}
	if err != nil {
		// What git had to say it has said in the protocol; a client that left,
		// or asked for what is not there, is no trouble of ours.
		s.log.DebugContext(ctx, "fetch ended early", "project", project.ID, "error", err)
	}
	to.finish()
	return nil
}

// A prefixed exchange writes something before the first byte.
type prefixed struct {
	*exchange
	preface []byte
}

func (p *prefixed) Write(b []byte) (int, error) {
	if len(p.preface) > 0 {
		preface := p.preface
		p.preface = nil
		if _, err := p.exchange.Write(preface); err != nil {
			return 0, err
		}
	}
	return p.exchange.Write(b)
}

// receiveCapabilities is what a push may choose from. It must stay within
// what the git that runs here can do, and what commands.go passes on.
var receiveCapabilities = strings.Join(passedOn, " ") + " object-format=sha1 agent=tidelock"

// advertiseReceive tells a client that pushes where the refs are. It is
// written here, not by git, because it is half of the processes of a push.
func (s *Server) advertiseReceive(w http.ResponseWriter, r *http.Request, project tidelock.Project) error {
	refs, err := s.receiveRefs(r.Context(), project, r.Header.Get("Git-Protocol"))
	if err != nil {
		return err
	}
	b := appendPacket(nil, "# service=", string(receivePack), "\n")
	b = append(append(b, flushPacket...), refs...)
	x := s.exchange(w, r, receivePack.advertisementType())
	if _, err := x.Write(b); err != nil {
		s.log.DebugContext(r.Context(), "client left", "project", project.ID, "error", err)
	}
	x.finish()
	return nil
}

// receiveRefs is what git-receive-pack says first.
func (s *Server) receiveRefs(ctx context.Context, project tidelock.Project, protocol string) ([]byte, error) {
	tips, err := s.repos.Repo(project.ID).Tips(ctx)
	if err != nil {
		return nil, err
	}
	var b []byte
	if protocol == "version=1" {
		b = appendPacket(b, "version 1\n")
	}
	capabilities := "\x00" + receiveCapabilities
	if len(tips) == 0 {
		b = appendPacket(b, zeroObject, " capabilities^{}", capabilities, "\n")
	}
	for _, tip := range tips {
		b = appendPacket(b, string(tip.Object), " ", string(tip.Name), capabilities, "\n")
		capabilities = ""
	}
	return append(b, flushPacket...), nil
}
