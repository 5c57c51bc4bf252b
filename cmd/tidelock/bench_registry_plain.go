package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // where it keeps blobs
	"github.com/sirupsen/logrus"
)

// A plainRegistry is distribution as it comes, on the file system and over
// TLS, with the settings of its own example.
type plainRegistry struct {
	url    string
	roots  *x509.CertPool
	app    *handlers.App
	server *http.Server
	served chan error
}

// startPlainRegistry serves from a folder below dir.
func startPlainRegistry(ctx context.Context, dir string) (*plainRegistry, error) {
	certificate, roots, err := localCertificate()
	if err != nil {
		return nil, fmt.Errorf("make a certificate for plain distribution: %w", err)
	}
	root := filepath.Join(dir, "distribution")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return nil, err
	}
	// It logs every request, and knows one logger for the whole process.
	logrus.SetLevel(logrus.PanicLevel)
	config := &configuration.Configuration{Storage: configuration.Storage{
		"cache":      {"blobdescriptor": "inmemory"},
		"filesystem": {"rootdirectory": root},
		"tag":        {"concurrencylimit": 8},
	}}
	config.Log.Level = "error"
	config.Log.AccessLog.Disabled = true
	config.Catalog.MaxEntries = 1000
	app := handlers.NewApp(context.WithoutCancel(ctx), config)
	r := &plainRegistry{
		url:   fmt.Sprintf("https://localhost:%d", listener.Addr().(*net.TCPAddr).Port),
		roots: roots, app: app, served: make(chan error, 1),
	}
	r.server = &http.Server{
		Handler: app, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(os.Stderr, "distribution: ", 0),
	}
	go func() { r.served <- r.server.ServeTLS(listener, "", "") }()
	return r, nil
}

func (r *plainRegistry) client() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: r.roots, MinVersion: tls.VersionTLS12}
	return &http.Client{Transport: transport}
}

func (r *plainRegistry) close() error {
	err := r.server.Close()
	if served := <-r.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return errors.Join(err, r.app.Shutdown())
}

// localCertificate is one for localhost and the roots that trust it.
func localCertificate() (tls.Certificate, *x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots, nil
}
