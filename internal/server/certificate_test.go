package server

import (
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string, now time.Time, hosts ...string) *authority {
	t.Helper()
	a, err := openAuthority(dir, hosts, now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// issued loads the server's certificate and checks that a client which trusts
// the CA would take it for a host.
func issued(t *testing.T, a *authority, now time.Time, host string) *x509.Certificate {
	t.Helper()
	pair, err := a.load(now)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, CurrentTime: now}); err != nil {
		t.Errorf("a client would refuse the certificate for %s: %v", host, err)
	}
	return pair.Leaf
}

func TestAuthorityIsMadeOnceAndKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	first := open(t, dir, noon, "localhost", "127.0.0.1", "forge.example", "localhost")
	leaf := issued(t, first, noon, "forge.example")
	issued(t, first, noon, "127.0.0.1")
	for name, want := range map[string]os.FileMode{"ca.key": 0o600, "server.key": 0o600, "ca.crt": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s: got mode %o, want %o", name, got, want)
		}
	}

	again := open(t, dir, noon, "forge.example", "127.0.0.1", "localhost")
	if !again.cert.Equal(first.cert) {
		t.Error("a second start made another authority")
	}
	if !issued(t, again, noon.Add(time.Hour), "localhost").Equal(leaf) {
		t.Error("a second start made another certificate")
	}
}

func TestCertificateIsRenewed(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, noon, "localhost")
	leaf := issued(t, a, noon, "localhost")
	const month = 30 * 24 * time.Hour

	if got := issued(t, a, noon.Add(7*month), "localhost"); !got.Equal(leaf) {
		t.Error("renewed too early")
	}
	renewed := issued(t, a, noon.Add(9*month), "localhost")
	if renewed.Equal(leaf) {
		t.Error("not renewed in the last third of its life")
	}
	other := open(t, dir, noon, "localhost", "forge.example")
	if issued(t, other, noon, "forge.example").Equal(renewed) {
		t.Error("not renewed for another host")
	}
}

func TestCertificateAtTheEndOfTheAuthority(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, noon, "localhost")
	late := a.cert.NotAfter.Add(-24 * time.Hour)
	leaf := issued(t, a, late, "localhost")
	if leaf.NotAfter.After(a.cert.NotAfter) {
		t.Errorf("the certificate lasts until %v, its authority until %v", leaf.NotAfter, a.cert.NotAfter)
	}
	if !issued(t, a, late.Add(time.Minute), "localhost").Equal(leaf) {
		t.Error("issued again although nothing longer can be had")
	}
	if _, err := openAuthority(dir, []string{"localhost"}, a.cert.NotAfter.Add(time.Second)); err == nil {
		t.Error("opened an authority that has expired")
	}
}

func TestBrokenFilesAreReplacedOrTold(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, noon, "localhost")
	issued(t, a, noon, "localhost")

	// A crash between key and certificate leaves a pair that does not fit.
	key, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "server.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	issued(t, a, noon, "localhost")

	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openAuthority(dir, []string{"localhost"}, noon); err == nil {
		t.Error("replaced an authority that clients may trust already")
	}
}

func TestGivenCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir, noon, "localhost")
	issued(t, a, noon, "localhost")
	c, err := newCertificate(slog.New(slog.DiscardHandler), fromFiles(a.path("server.crt"), a.path("server.key")))
	if err != nil {
		t.Fatal(err)
	}
	before := c.current.Load().Leaf
	after := issued(t, open(t, dir, noon, "localhost", "forge.example"), noon, "forge.example")
	if err := c.refresh(noon); err != nil {
		t.Fatal(err)
	}
	if got := c.current.Load().Leaf; got.Equal(before) || !got.Equal(after) {
		t.Error("the new certificate is not served")
	}
	if err := os.Remove(a.path("server.key")); err != nil {
		t.Fatal(err)
	}
	if err := c.refresh(noon); err == nil || !c.current.Load().Leaf.Equal(after) {
		t.Errorf("got %v, want an error and the old certificate", err)
	}
}
