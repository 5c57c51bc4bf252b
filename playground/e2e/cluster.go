// Package e2e holds the tests of the whole loop, from a push to a changed
// cluster, against a real control plane and real Flux, and what they share.
//
// One cluster serves all tests of a run; each test works in namespaces of its
// own, beside others. Only a test that kills what all share, or that measures,
// runs alone, without t.Parallel:
//
//	func TestMain(m *testing.M) { os.Exit(e2e.Main(m)) }
//
//	func TestSomething(t *testing.T) {
//		t.Parallel()
//		c := e2e.Cluster(t)
//		ns := c.Namespace(t)
//		…
//	}
package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	imagev1 "github.com/fluxcd/image-reflector-controller/api/v1"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	notificationv1beta3 "github.com/fluxcd/notification-controller/api/v1beta3"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/controlplane"
	"tidelock.dev/playground/fluxsystem"
)

// A System is the control plane and the Flux that all tests of a run share.
type System struct {
	Plane  *controlplane.ControlPlane
	Flux   *fluxsystem.System
	Client client.WithWatch // an administrator, with Flux's kinds
	Dir    string           // logs lie below it

	access access
}

// Scheme knows the kinds of Kubernetes and of Flux.
var Scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(s))
	utilruntime.Must(sourcev1.AddToScheme(s))
	utilruntime.Must(imagev1.AddToScheme(s))
	utilruntime.Must(kustomizev1.AddToScheme(s))
	utilruntime.Must(notificationv1.AddToScheme(s))
	utilruntime.Must(notificationv1beta3.AddToScheme(s))
	return s
}()

var shared struct {
	once   sync.Once
	system *System
	err    error
}

// Cluster returns the run's cluster and starts it for the first who asks.
func Cluster(t testing.TB) *System {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real cluster; run without -short")
	}
	shared.once.Do(func() {
		// The cluster outlives the test that starts it.
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		shared.system, shared.err = start(ctx)
	})
	if shared.err != nil {
		t.Fatalf("start cluster: %v", shared.err)
	}
	return shared.system
}

// startTimeout covers the start, and a cold build of what is started.
const startTimeout = 40 * time.Minute

func start(ctx context.Context) (system *System, err error) {
	set, err := component.Default(ctx, component.Cluster()...)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tidelock-e2e-")
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s := &System{Dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	s.Plane, err = controlplane.Start(ctx, controlplane.Config{
		Dir: filepath.Join(dir, "controlplane"), Components: set, Log: log, Expendable: true,
	})
	if err != nil {
		return nil, err
	}
	s.Flux, err = fluxsystem.Start(ctx, fluxsystem.Config{
		Dir: filepath.Join(dir, "flux"), Components: set, Cluster: s.Plane.REST(), Log: log,
	})
	if err != nil {
		return nil, err
	}
	s.Client, err = client.NewWithWatch(s.Plane.REST(), client.Options{Scheme: Scheme})
	return s, err
}

func (s *System) stop() error {
	var errs []error
	if s.Flux != nil {
		errs = append(errs, s.Flux.Stop())
	}
	if s.Plane != nil {
		errs = append(errs, s.Plane.Stop())
	}
	if os.Getenv("TIDELOCK_E2E_KEEP") != "" {
		fmt.Fprintln(os.Stderr, "logs of the cluster are kept in", s.Dir)
	} else {
		errs = append(errs, os.RemoveAll(s.Dir))
	}
	return errors.Join(errs...)
}

// Main runs the tests of a package and stops the cluster after them. Set
// TIDELOCK_E2E_KEEP to keep its logs.
func Main(m *testing.M) int {
	code := m.Run()
	if shared.system != nil {
		if err := shared.system.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop cluster:", err)
			return max(code, 1)
		}
	}
	return code
}

// REST returns a configuration with an administrator's rights.
func (s *System) REST() *rest.Config { return s.Plane.REST() }

// Namespace makes a namespace for one test and has it deleted when the test
// ends.
func (s *System) Namespace(t testing.TB) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	if err := s.Client.Create(t.Context(), ns); err != nil {
		t.Fatalf("create namespace: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Client.Delete(ctx, ns); err != nil {
			t.Errorf("delete namespace %s: %v", ns.Name, err)
		}
	})
	return ns.Name
}

// Wake asks the controller of a source to look at it now, as flux reconcile
// does.
func (s *System) Wake(t testing.TB, namespace, name string) {
	t.Helper()
	source := &sourcev1.GitRepository{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	request := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil,
		`{"metadata":{"annotations":{%q:%q}}}`, meta.ReconcileRequestAnnotation, time.Now().Format(time.RFC3339Nano)))
	if err := s.Client.Patch(t.Context(), source, request); err != nil {
		t.Fatalf("wake %s/%s: %v", namespace, name, err)
	}
}

// Eventually calls check until it returns nil, and fails the test with its
// last error when that does not happen in time.
func Eventually(t testing.TB, within time.Duration, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	var last error // that says more than that the time is over
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not within %s: %v", within, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
