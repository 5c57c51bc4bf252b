// Package stage starts the services of a process in order and stops them in
// reverse. It knows nothing of what they do: a service is a function that
// blocks until its context is done. Opening what a service needs belongs in
// its constructor, before Run.
package stage

import (
	"context"
	"errors"
	"sync"
)

// A Stage is a set of services that start together and stop together. A
// service runs until its context is done; if one returns earlier, with an
// error or without, everything is stopped.
type Stage []func(context.Context) error

// Run starts the stages in order and blocks until ctx is done or a service has
// returned. It then stops the last stage, waits for its services, and goes on
// with the one before it, so that a service may rely on everything in earlier
// stages for as long as it runs. It returns the joined errors of all services;
// errors that only say that a service was cancelled are left out.
func Run(ctx context.Context, stages ...Stage) error {
	if len(stages) == 0 {
		<-ctx.Done()
		return nil
	}
	// This stage keeps running while later ones stop, so its context is
	// not ended by ctx, only by us; but it keeps the values of ctx.
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	rest, abort := context.WithCancel(ctx)
	defer abort()

	var wg sync.WaitGroup
	errs := make([]error, len(stages[0]))
	for i, serve := range stages[0] {
		wg.Go(func() {
			defer abort()
			if err := serve(own); !errors.Is(err, context.Canceled) || own.Err() == nil {
				errs[i] = err
			}
		})
	}
	err := Run(rest, stages[1:]...)

	stop() // only now: later stages were using this one
	wg.Wait()
	return errors.Join(append([]error{err}, errs...)...)
}
