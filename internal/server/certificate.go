package server

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	renewBefore   = leafLife / 3
	clockSkew     = time.Hour
	recheckEvery  = time.Minute
)

// A certificate is what HTTPS is served with. It is read again when its files
// change and, when it comes from our own authority, renewed in time.
type certificate struct {
	log     *slog.Logger
	load    func(time.Time) (*tls.Certificate, error)
	current atomic.Pointer[tls.Certificate]
}

func newCertificate(log *slog.Logger, load func(time.Time) (*tls.Certificate, error)) (*certificate, error) {
	c := &certificate{log: log, load: load}
	if err := c.refresh(time.Now()); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificate) refresh(now time.Time) error {
	fresh, err := c.load(now)
	if err != nil {
		return err
	}
	if old := c.current.Swap(fresh); old != nil && !slices.EqualFunc(old.Certificate, fresh.Certificate, slices.Equal[[]byte]) {
		c.log.Info("certificate changed", "until", fresh.Leaf.NotAfter)
	}
	return nil
}

// Run looks for a newer certificate until ctx is done.
func (c *certificate) Run(ctx context.Context) error {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if err := c.refresh(now); err != nil {
				c.log.Error("certificate not renewed, the old one stays in use", "error", err)
			}
		}
	}
}

// config is for listeners; it always serves the current certificate.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current.Load(), nil
		},
	}
}

// fromFiles serves a certificate that somebody else keeps up to date.
func fromFiles(certFile, keyFile string) func(time.Time) (*tls.Certificate, error) {
	return func(time.Time) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificate: %w", err)
		}
		return &pair, nil
	}
}

// An authority is our own certificate authority: a folder with ca.crt and
// ca.key, made on first start, and the certificate it issued to this server.
type authority struct {
	dir   string
	hosts []string // names and addresses the certificate is for
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
}

// openAuthority reads the authority in a folder or makes it.
func openAuthority(dir string, hosts []string, now time.Time) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder for certificates: %w", err)
	}
	a := &authority{dir: dir, hosts: sortedUnique(hosts)}
	pair, err := readPair(a.certFile(), a.path("ca.key"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return a, a.create(now)
	case err != nil:
		return nil, fmt.Errorf("read the certificate authority: %w", err)
	}
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	if now.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("the certificate authority in %s expired on %s; remove the folder to have a new one made, and hand out its ca.crt",
			dir, a.cert.NotAfter.Format(time.DateOnly))
	}
	return a, nil
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// certFile is what clients need to trust the server.
func (a *authority) certFile() string { return a.path("ca.crt") }

func (a *authority) create(now time.Time) error {
	host, _ := os.Hostname()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Tidelock CA of " + cmp.Or(host, "this machine"), Organization: []string{"Tidelock"}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	pair, err := issue(template, nil, nil)
	if err != nil {
		return fmt.Errorf("make the certificate authority: %w", err)
	}
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	return writePair(a.certFile(), a.path("ca.key"), pair)
}

// load returns the server's certificate, and issues a new one when it is
// missing, for other hosts, of another authority or past two thirds of its life.
func (a *authority) load(now time.Time) (*tls.Certificate, error) {
	certFile, keyFile := a.path("server.crt"), a.path("server.key")
	if pair, err := readPair(certFile, keyFile); err == nil && a.good(pair.Leaf, now) {
		return pair, nil
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: a.hosts[0], Organization: []string{"Tidelock"}},
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	for _, host := range a.hosts {
		if addr, err := netip.ParseAddr(host); err == nil {
			template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	pair, err := issue(template, a.cert, a.key)
	if err != nil {
		return nil, fmt.Errorf("issue the server's certificate: %w", err)
	}
	return pair, writePair(certFile, keyFile, pair)
}

func (a *authority) good(leaf *x509.Certificate, now time.Time) bool {
	var hosts []string
	hosts = append(hosts, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	lastsUntilTheAuthority := !leaf.NotAfter.Before(a.cert.NotAfter)
	return slices.Equal(sortedUnique(hosts), a.hosts) &&
		leaf.CheckSignatureFrom(a.cert) == nil &&
		!now.Before(leaf.NotBefore) && now.Before(leaf.NotAfter) &&
		(leaf.NotAfter.Sub(now) > renewBefore || lastsUntilTheAuthority)
}

func sortedUnique(hosts []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(hosts)))
}

// issue signs a template with a new P-256 key; without a parent it signs itself.
func issue(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func readPair(certFile, keyFile string) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	if _, ok := pair.PrivateKey.(*ecdsa.PrivateKey); !ok {
		return nil, fmt.Errorf("%s does not hold an ECDSA key", keyFile)
	}
	return &pair, nil
}

// writePair writes the key first: a certificate without its key is of no use.
func writePair(certFile, keyFile string, pair *tls.Certificate) error {
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := writeFile(keyFile, key, 0o600); err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
	return writeFile(certFile, cert, 0o644)
}

// writeFile replaces a file in one step: readers see the old or the new one.
func writeFile(name string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return fmt.Errorf("write %q: %w", name, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %q: %w", name, err)
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
