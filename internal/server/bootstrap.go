package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// administrator is who the first token belongs to.
const administrator = "root"

// firstStart makes sure that the administrator exists and that somebody can
// act as it: a token is written to a file, unless one was ever used. After
// that the file may be removed, and none is made again.
func (s *Server) firstStart(ctx context.Context) error {
	root, err := s.forge.Bootstrap(ctx, administrator)
	if err != nil {
		return fmt.Errorf("create the administrator: %w", err)
	}
	if _, err := os.Stat(s.TokenFile()); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the administrator's token: %w", err)
	}
	tokens, _, err := s.forge.PersonalTokens(ctx, forge.Principal{User: &root}, root.ID, tidelock.TokenFilter{}, tidelock.Page{})
	if err != nil {
		return fmt.Errorf("list the administrator's tokens: %w", err)
	}
	for _, t := range tokens {
		if !t.LastUsed.IsZero() {
			return nil
		}
	}
	_, secret, err := s.forge.IssueBootstrapToken(ctx, root)
	if err != nil {
		return fmt.Errorf("create the administrator's token: %w", err)
	}
	if err := writeFile(s.TokenFile(), []byte(secret.Reveal()+"\n"), 0o600); err != nil {
		return err
	}
	s.log.InfoContext(ctx, "administrator's token written", "user", administrator, "file", s.TokenFile())
	return nil
}
