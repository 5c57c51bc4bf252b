// Package rollout keeps rollouts moving: it makes them of pushes, has them
// reported to the commits, doubts those of agents that are gone, and counts
// them. It owns when, and no rule: what a rollout is and what is written of it
// is forge's.
//
// Hints only hurry it. Which projects have something left to do is in the
// store, which it looks through at the start and on a slow timer, so that
// nothing is lost with an event, and a crash between any two steps is mended
// by the next look.
//
//	loop, err := rollout.New(rollout.Config{Forge: f, Log: log})
//	err = loop.Run(ctx)
package rollout
