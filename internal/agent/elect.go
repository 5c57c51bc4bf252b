package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"tidelock.dev/internal/flux"
)

const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second

	// leaseTimeout bounds one request; it is what a stop may have to wait for.
	leaseTimeout = 3 * time.Second
)

// elect stands for election again and again until ctx is done, and follows
// Flux while it leads. The Lease is named after the agent and its forge, so
// the first registration has to come before.
func (a *Agent) elect(ctx context.Context) error {
	select {
	case <-a.identified:
	case <-ctx.Done():
		return nil
	}
	config := rest.CopyConfig(a.config.REST)
	config.Timeout = leaseTimeout
	leases, err := coordination.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client for leases: %w", err)
	}
	a.mu.Lock()
	name := flux.AgentName(a.identity.agent, a.identity.forge)
	a.mu.Unlock()
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Name: name, Namespace: a.config.LeaseNamespace},
		Client:     leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: a.config.PodName + "_" + a.instance},
	}
	for ctx.Err() == nil {
		if err := a.term(ctx, lock); err != nil {
			return err
		}
	}
	return nil
}

// term stands for election, leads until the Lease is lost or ctx is done, and
// gives the Lease up only when the work has ended.
func (a *Agent) term(ctx context.Context, lock resourcelock.Interface) error {
	candidacy, withdraw := context.WithCancel(context.WithoutCancel(ctx))
	defer withdraw()
	var term office
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   leaseDuration,
		RenewDeadline:   renewDeadline,
		RetryPeriod:     retryPeriod,
		ReleaseOnCancel: true,
		Name:            lock.Describe(),
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(won context.Context) {
				if !term.enter() {
					return
				}
				defer term.leave()
				// The term ends with the Lease, and before it when we stop.
				reign, end := context.WithCancel(won)
				defer end()
				defer context.AfterFunc(ctx, end)()
				a.rule(reign)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("stand for election: %w", err)
	}
	defer context.AfterFunc(ctx, func() {
		term.close()
		withdraw()
	})()
	elector.Run(candidacy)
	term.close()
	return nil
}

// rule is what a leader does.
func (a *Agent) rule(ctx context.Context) {
	log := a.log.With("lease_namespace", a.config.LeaseNamespace)
	log.InfoContext(ctx, "leading")
	a.leading.store(true)
	defer a.leading.store(false)
	var work sync.WaitGroup
	work.Go(func() {
		if err := a.health.Run(ctx); err != nil {
			log.ErrorContext(ctx, "watching health stopped", "error", err)
		}
	})
	if err := a.flux().Run(ctx); err != nil {
		log.ErrorContext(ctx, "flux stopped", "error", err)
	}
	work.Wait()
	log.InfoContext(context.WithoutCancel(ctx), "leading no more")
}

// An office holds at most one term of work; closing it waits for the work and
// keeps any from starting late.
type office struct {
	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup
}

func (o *office) enter() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	o.work.Add(1)
	return true
}

func (o *office) leave() { o.work.Done() }

func (o *office) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.work.Wait()
}
