// Package agentrpc is what an agent and the agent server share: the messages
// of agent.proto with their generated Go, the digest by which both sides
// compare what was delivered, and the form of an agent's configuration file.
// It holds no behaviour beyond that.
package agentrpc
