// Package flux makes Flux fetch what was pushed. It owns everything the agent
// knows of Flux's API: which GitRepositories belong to the forge, the Receiver
// and Secret that trigger each of them, and how far Flux came with the latest
// announcement. It knows nothing of the agent server, the tunnel or the wire.
//
// A Controller watches GitRepositories in all namespaces. Its caller tells it
// which URLs are the forge's (SetForge), which sources the server serves
// (SetServed) and what was pushed (Announce); it reads the set of sources and
// the progress of announcements from a Feed. Only one Controller per agent may
// run in a cluster at a time: Run takes leadership as given.
//
// A trigger is an HTTP call to Flux's notification-controller where a Receiver
// is ready, and otherwise the annotation reconcile.fluxcd.io/requestedAt on the
// source itself. An announcement is a level, not an edge: it is followed until
// the source's artifact is the announced commit, and triggered again with
// back-off for as long as it is not.
package flux
