package server

import (
	"net"
	"slices"

	"tidelock.dev/internal/webhook"
)

// newGuard says where webhooks may lead: what the operator allows, and never
// back to this server.
func (s *Server) newGuard() (*webhook.Guard, error) {
	var own []net.Addr
	for _, l := range slices.Concat(s.https, s.http, s.scrape, s.sshListeners) {
		own = append(own, l.Addr())
	}
	return webhook.NewGuard(webhook.GuardConfig{
		Allow: s.config.WebhookAllow, DenyPrivate: s.config.WebhookDenyPrivate, Own: own,
	})
}
