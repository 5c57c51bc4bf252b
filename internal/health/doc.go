// Package health tells how the objects are that Flux's appliers brought into a
// cluster. It owns the watches on them and the reading of their status; of
// Flux it knows nothing. Whoever follows an applier names the objects in its
// inventory, under any name of its own for the applier, the owner:
//
//	w, err := health.New(health.Config{REST: kube, Log: log, Notify: changed})
//	go w.Run(ctx)
//	w.Follow("Kustomization/flux-system/apps", refs)
//	…
//	report := w.Health("Kustomization/flux-system/apps")
//
// # What it asks of the API server
//
// Of every kind that somebody's objects have there is one watch on metadata
// alone, over the whole cluster, or one in each namespace needed where only
// that is allowed. It tells that an object is there, that it goes, and that
// its resourceVersion has moved; what is not followed is not kept. An object
// whose kind has a status is then read, once, however often it moved while it
// waited for its turn; few are read at a time. A ConfigMap or a Role has
// nothing to wait for: it is healthy by being there, and is never read. Secrets
// are neither listed nor watched: one is asked for by name, and if that is not
// allowed it is taken to be there, since Flux applied it.
//
// Nothing is asked twice because time has passed, except what failed.
//
// # What it tells
//
// Health is what kstatus computes, corrected where that is known to mislead
// (judge.go). When a workload has not been well for a moment, its pods are
// looked at too, and what keeps them is named in its place: the image that is
// not to be had, the quota, the probe (blame.go). The watches for that last as
// long as somebody in the namespace is unwell.
//
// What may not be seen, or cannot be seen any more, is unknown, with the
// reason; it is never called healthy or failed.
package health
