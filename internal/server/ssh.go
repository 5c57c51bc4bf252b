package server

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"tidelock.dev/internal/gitserver"
)

// A gitSSH is git over SSH as it is served here.
type gitSSH struct {
	*gitserver.SSH
	url *url.URL // what people use to reach it
	key ssh.Signer
}

// openSSHKey reads the host key, and finds out how the listener is reached.
func (s *Server) openSSHKey() error {
	if len(s.sshListeners) == 0 {
		return nil
	}
	key, err := gitserver.OpenHostKey(filepath.Join(s.config.DataDir, "ssh", "host_ed25519"))
	if err != nil {
		return err
	}
	reached := &url.URL{Scheme: "ssh", Host: s.external.Hostname()}
	if port := portOf(s.sshListeners[0]); port != 22 {
		reached.Host += ":" + strconv.Itoa(port)
	}
	if s.config.SSHURL != "" {
		if reached, err = url.Parse(s.config.SSHURL); err != nil {
			return fmt.Errorf("parse the SSH URL: %w", err)
		}
	}
	reached.User = url.User(gitserver.SSHUser)
	s.ssh = &gitSSH{url: reached, key: key}
	return nil
}

// openSSH makes the listener serve git; it is the last part to be opened.
func (s *Server) openSSH() {
	if s.ssh != nil {
		s.ssh.SSH = gitserver.NewSSH(s.git, gitserver.SSHConfig{
			Listeners: s.sshListeners, HostKey: s.ssh.key, Grace: s.config.ShutdownTimeout,
		})
	}
}

// serveSSH answers on the SSH listeners until ctx is done.
func (s *Server) serveSSH(ctx context.Context) error {
	if s.ssh == nil {
		<-ctx.Done()
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		if s.aborted.Load() {
			s.ssh.Cut()
		}
	})
	defer stop()
	if err := s.ssh.Run(ctx); err != nil {
		return fmt.Errorf("serve git over SSH: %w", err)
	}
	return nil
}

// sshURL is the base of git over SSH: of the listener here or, without one, of
// whatever the configuration says. It is nil for none.
func (s *Server) sshURL() (*url.URL, error) {
	if s.ssh != nil {
		return s.ssh.url, nil
	}
	if s.config.SSHURL == "" {
		return nil, nil
	}
	u, err := url.Parse(s.config.SSHURL)
	if err != nil {
		return nil, fmt.Errorf("parse the SSH URL: %w", err)
	}
	return u, nil
}

// SSHURL is where clients reach git over SSH, "" if it is not served here.
func (s *Server) SSHURL() string {
	if s.ssh == nil {
		return ""
	}
	return s.ssh.url.String()
}

// KnownHosts is the line by which SSH clients know the server, "" if git is
// not served over SSH here.
func (s *Server) KnownHosts() string {
	if s.ssh == nil {
		return ""
	}
	return knownhosts.Line([]string{s.ssh.url.Host}, s.ssh.key.PublicKey())
}
