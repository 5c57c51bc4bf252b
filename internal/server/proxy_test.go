package server_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"tidelock.dev/internal/server"
	"tidelock.dev/internal/servertest"
)

// H11: the audit log names the peer, whatever the client says, and the client
// behind it only when the operator trusts the peer.
func TestH11AuditLogNamesTheClient(t *testing.T) {
	for _, tc := range []struct {
		name    string
		trusted []string
		want    string
	}{
		{"nobody is trusted", nil, "127.0.0.1"},
		{"somebody else is trusted", []string{"192.0.2.0/24"}, "127.0.0.1"},
		{"the peer is trusted", []string{"127.0.0.1", "::1"}, "203.0.113.7"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := servertest.Start(t, func(c *server.Config) { c.TrustedProxies = tc.trusted })
			made := s.Do(http.MethodPost, "/api/v4/groups", s.Token, strings.NewReader(`{"name":"team","path":"team"}`),
				"Content-Type", "application/json", "X-Forwarded-For", "198.51.100.1, 203.0.113.7", "X-Real-Ip", "198.51.100.2", "Forwarded", "for=198.51.100.3")
			if made.Status != http.StatusCreated {
				t.Fatalf("got %d %s", made.Status, made.Body)
			}
			var events []struct {
				EventName string `json:"event_name"`
				Details   struct {
					IPAddress string `json:"ip_address"`
				} `json:"details"`
			}
			log := s.Do(http.MethodGet, "/api/v4/groups/team/audit_events", s.Token, nil)
			if err := json.Unmarshal([]byte(log.Body), &events); err != nil || len(events) != 1 {
				t.Fatalf("the log is %s, %v", log.Body, err)
			}
			if got := events[0].Details.IPAddress; got != tc.want && !(tc.want == "127.0.0.1" && got == "::1") {
				t.Errorf("the event is from %s, want %s", got, tc.want)
			}
		})
	}
}
