// Package tunnel carries many streams over one outbound WebSocket, so that a
// cluster nobody can dial into is still reachable through the connection its
// agent made. It owns the connection: the handshake, the heartbeat, flow
// control per stream, drain and close. It knows nothing of what flows.
//
// The agent calls Dial, the server calls Accept once it knows who is asking;
// both get a Session. Two kinds of stream are spoken over it:
//
//   - streams the agent opens carry HTTP/2 without TLS: the agent calls
//     Session.Client, the server Session.ServeHTTP2;
//   - streams the server opens carry HTTP/1.1, so that upgrades and watches
//     pass unchanged: the server uses Session.RoundTripper, the agent calls
//     Session.ServeHTTP1.
package tunnel
