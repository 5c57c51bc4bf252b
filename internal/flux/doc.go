// Package flux makes Flux fetch what was pushed, and tells what came of it. It
// owns everything the agent knows of Flux's API: which sources belong to the
// forge, the Receiver and Secret that trigger each of them, how far Flux came
// with the latest announcement, and how the sources and what applies them
// stand. It knows nothing of the agent server, the tunnel or the wire.
//
// A Controller watches sources of several kinds and their appliers in all
// namespaces, as far as the cluster serves them; what sources differ in is in
// kind.go, what appliers differ in is in applier.go, and all else is the same
// for every one of them. Its caller tells it which URLs are the forge's
// (SetForge), which sources the server serves (SetServed) and what was pushed
// (Announce); it reads the set of sources and the progress of announcements
// from a SourceFeed, and what Flux makes of them from an ObservationFeed. How
// the objects are that appliers brought it asks of a HealthWatcher. Only one
// Controller per agent may run in a cluster at a time: Run takes leadership as
// given.
//
// A trigger is an HTTP call to Flux's notification-controller where a Receiver
// is ready, and otherwise the annotation reconcile.fluxcd.io/requestedAt on the
// source itself. An announcement is a level, not an edge: it is followed until
// the source has what was announced, a commit or an artifact, and triggered
// again with back-off for as long as it has not.
package flux
