// Package flux makes Flux fetch what was pushed. It owns everything the agent
// knows of Flux's API: which sources belong to the forge, the Receiver and
// Secret that trigger each of them, and how far Flux came with the latest
// announcement. It knows nothing of the agent server, the tunnel or the wire.
//
// A Controller watches sources of several kinds in all namespaces, as far as
// the cluster serves them; what kinds differ in is in kind.go, and all else is
// the same for every source. Its caller tells it which URLs are the forge's (SetForge), which sources the server serves
// (SetServed) and what was pushed (Announce); it reads the set of sources and
// the progress of announcements from a SourceFeed. Only one Controller per agent may
// run in a cluster at a time: Run takes leadership as given.
//
// A trigger is an HTTP call to Flux's notification-controller where a Receiver
// is ready, and otherwise the annotation reconcile.fluxcd.io/requestedAt on the
// source itself. An announcement is a level, not an edge: it is followed until
// the source has what was announced, a commit or an artifact, and triggered
// again with back-off for as long as it has not.
package flux
