package controlplane_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/controlplane"
	"tidelock.dev/playground/supervisor"
)

func components(t *testing.T) component.Set {
	t.Helper()
	set, err := component.Default(t.Context(), component.Kube, component.KWOK)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func start(t *testing.T, dir string) *controlplane.ControlPlane {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	plane, err := controlplane.Start(ctx, controlplane.Config{
		Dir: dir, Components: components(t), Expendable: true,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plane.Stop() })
	t.Logf("ready after %s", time.Since(began).Round(time.Millisecond))
	return plane
}

// eventually polls until what returns nil, and fails with its last error.
func eventually(t *testing.T, within time.Duration, what func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		err := what(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after %s: %v", within, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// One control plane goes through its life: it starts, runs a Deployment,
// loses a component, and comes back from its folder with what it knew.
func TestControlPlane(t *testing.T) {
	dir := t.TempDir()
	plane := start(t, dir)
	client := kubernetes.NewForConfigOrDie(plane.REST())

	t.Run("says its version", func(t *testing.T) {
		version, err := client.Discovery().ServerVersion()
		if err != nil {
			t.Fatal(err)
		}
		if version.GitVersion != "v1.34.4" || version.Major != "1" || version.Minor != "34" {
			t.Errorf("got version %+v, want v1.34.4", version)
		}
	})

	t.Run("a Deployment becomes ready", func(t *testing.T) {
		deployment := testDeployment("web", 2)
		if _, err := client.AppsV1().Deployments("default").Create(t.Context(), deployment, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, func(ctx context.Context) error {
			return deploymentReady(ctx, client, "web", 2)
		})
	})

	t.Run("a ServiceAccount has its rights and no others", func(t *testing.T) {
		testServiceAccount(t, plane, client)
	})

	t.Run("strangers are turned away", func(t *testing.T) {
		stranger := plane.REST()
		stranger.CertData, stranger.KeyData, stranger.CertFile, stranger.KeyFile = nil, nil, "", ""
		_, err := kubernetes.NewForConfigOrDie(stranger).CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{})
		if !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
			t.Errorf("anonymous list of Secrets: got %v, want a refusal", err)
		}
	})

	t.Run("a killed scheduler stays down until it is restarted", func(t *testing.T) {
		if err := plane.Kill(controlplane.Scheduler); err != nil {
			t.Fatal(err)
		}
		if _, err := client.AppsV1().Deployments("default").Create(t.Context(), testDeployment("late", 1), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, func(ctx context.Context) error {
			pods, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=late"})
			if err == nil && len(pods.Items) == 0 {
				err = errors.New("no pod was made")
			}
			return err
		})
		if err := deploymentReady(t.Context(), client, "late", 1); err == nil {
			t.Error("a pod was scheduled although the scheduler is down")
		}
		if err := plane.Restart(t.Context(), controlplane.Scheduler); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, func(ctx context.Context) error {
			return deploymentReady(ctx, client, "late", 1)
		})
	})

	address := plane.REST().Host
	if err := plane.Stop(); err != nil {
		t.Fatal(err)
	}
	record, err := supervisor.Read(dir)
	if !errors.Is(err, supervisor.ErrNotRunning) || len(record.Processes) != 0 {
		t.Errorf("after Stop: got processes %v, error %v, want none and ErrNotRunning", record.Processes, err)
	}

	plane = start(t, dir)
	if plane.REST().Host != address {
		t.Errorf("second start listens on %s, the first did on %s", plane.REST().Host, address)
	}
	client = kubernetes.NewForConfigOrDie(plane.REST())
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		return deploymentReady(ctx, client, "web", 2)
	})
}

func testDeployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "example.org/web:1"}}},
			},
		},
	}
}

func deploymentReady(ctx context.Context, client kubernetes.Interface, name string, want int32) error {
	d, err := client.AppsV1().Deployments("default").Get(ctx, name, metav1.GetOptions{})
	if err == nil && d.Status.ReadyReplicas != want {
		err = errors.New("Deployment " + name + " is not ready")
	}
	return err
}

func testServiceAccount(t *testing.T, plane *controlplane.ControlPlane, admin kubernetes.Interface) {
	t.Helper()
	ctx := t.Context()
	const name = "reader"
	_, err := admin.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = admin.RbacV1().Roles("default").Create(ctx, &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = admin.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: name, Namespace: "default"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}

	path := filepath.Join(t.TempDir(), "kubeconfig")
	expires, err := controlplane.WriteServiceAccountKubeconfig(ctx, plane.REST(), "default", name, path)
	if err != nil {
		t.Fatal(err)
	}
	if time.Until(expires) < 24*time.Hour {
		t.Errorf("the token expires at %s, want a life longer than a day", expires)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("kubeconfig: got mode %v, error %v, want 0600", info.Mode(), err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	reader := kubernetes.NewForConfigOrDie(config)
	eventually(t, 10*time.Second, func(ctx context.Context) error {
		_, err := reader.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
		return err
	})
	if _, err := reader.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list of Secrets: got %v, want forbidden", err)
	}
}

// A start that cannot succeed says which component, and leaves nothing behind.
func TestStartFails(t *testing.T) {
	set := components(t)
	broken := component.Built{Name: component.KWOK, Dir: t.TempDir()}
	script := "#!/bin/sh\necho 'no stages found' >&2\nexit 3\n"
	if err := os.WriteFile(broken.Binary(), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := controlplane.Start(ctx, controlplane.Config{
		Dir: dir, Expendable: true, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Components: component.Set{component.Kube: set[component.Kube], component.KWOK: broken},
	})
	if err == nil || !strings.Contains(err.Error(), "start kwok") || !strings.Contains(err.Error(), "no stages found") {
		t.Errorf("got %v, want an error that names kwok and shows its log", err)
	}
	if _, err := supervisor.Read(dir); !errors.Is(err, supervisor.ErrNotRunning) {
		t.Errorf("the folder is still held: %v", err)
	}
}
