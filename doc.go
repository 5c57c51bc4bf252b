// Package tidelock is the vocabulary of Tidelock: the nouns, their typed ids,
// the kinds of error and the events that every other package speaks of. It
// imports only the standard library, and everything may import it.
//
// A tidally locked body always shows its primary the same face; a tidelocked
// cluster always shows the face of its Git repository. A developer pushes to
// a Project; the Push moves a Head; the agent server announces the new head
// to every Agent that serves a source pointing at it; the agent triggers Flux.
package tidelock
