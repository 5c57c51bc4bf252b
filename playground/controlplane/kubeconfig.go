package controlplane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// writeCertKubeconfig writes <name>.kubeconfig for the holder of <name>.crt.
func (p *ControlPlane) writeCertKubeconfig(name string) error {
	config := &rest.Config{Host: "https://" + p.address}
	var err error
	read := func(file string) []byte {
		text, e := os.ReadFile(p.ca.path(file))
		if err == nil {
			err = e
		}
		return text
	}
	config.CAData, config.CertData, config.KeyData = read("ca.crt"), read(name+".crt"), read(name+".key")
	if err != nil {
		return fmt.Errorf("read certificate of %s: %w", name, err)
	}
	return writeKubeconfig(p.ca.path(name+".kubeconfig"), config)
}

// tokenLife is how long we ask a ServiceAccount's token to be valid. Clusters
// may grant less.
const tokenLife = 365 * 24 * time.Hour

// WriteServiceAccountKubeconfig writes a kubeconfig with which a process is
// the ServiceAccount and nobody else, and beside it the file of its token,
// which clients read again every minute: calling this anew refreshes it for
// those that run. It returns when the token expires; a cluster may set that
// earlier than asked for.
func WriteServiceAccountKubeconfig(ctx context.Context, cluster *rest.Config, namespace, name, path string) (expires time.Time, err error) {
	client, err := kubernetes.NewForConfig(cluster)
	if err != nil {
		return time.Time{}, err
	}
	request := &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr(int64(tokenLife.Seconds()))},
	}
	granted, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return time.Time{}, fmt.Errorf("request token of ServiceAccount %s/%s: %w", namespace, name, err)
	}
	config := rest.AnonymousClientConfig(cluster)
	if config.BearerTokenFile, err = filepath.Abs(path + ".token"); err != nil {
		return time.Time{}, err
	}
	if err := replaceFile(config.BearerTokenFile, []byte(granted.Status.Token)); err != nil {
		return time.Time{}, fmt.Errorf("write token: %w", err)
	}
	return granted.Status.ExpirationTimestamp.Time, writeKubeconfig(path, config)
}

func ptr[T any](v T) *T { return &v }

// writeKubeconfig writes config with one context, for its owner's eyes only.
func writeKubeconfig(path string, config *rest.Config) error {
	const name = "playground"
	k := clientcmdapi.NewConfig()
	k.Clusters[name] = &clientcmdapi.Cluster{
		Server:                   config.Host + config.APIPath,
		CertificateAuthority:     config.CAFile,
		CertificateAuthorityData: config.CAData,
		InsecureSkipTLSVerify:    config.Insecure,
		TLSServerName:            config.ServerName,
	}
	k.AuthInfos[name] = &clientcmdapi.AuthInfo{
		TokenFile:             config.BearerTokenFile,
		ClientCertificateData: config.CertData,
		ClientKeyData:         config.KeyData,
	}
	k.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	k.CurrentContext = name
	text, err := clientcmd.Write(*k)
	if err != nil {
		return err
	}
	if err := replaceFile(path, text); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

// replaceFile writes a file in one step: it may be in use.
func replaceFile(path string, text []byte) error {
	next := path + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}
