package main

import (
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// runEtcd serves a single-member etcd until SIGINT or SIGTERM. It takes the
// few flags the playground needs, named as etcd names them.
func runEtcd(args []string) error {
	flags := flag.NewFlagSet("etcd", flag.ContinueOnError)
	dir := flags.String("data-dir", "", "folder of the database (required)")
	client := flags.String("listen-client-urls", "http://127.0.0.1:2379", "address for clients")
	peer := flags.String("listen-peer-urls", "http://127.0.0.1:2380", "address for peers")
	certFile := flags.String("cert-file", "", "certificate for https addresses, for clients and peers")
	keyFile := flags.String("key-file", "", "key of the certificate")
	caFile := flags.String("trusted-ca-file", "", "authority that certificates of clients must come from")
	unsafeNoFsync := flags.Bool("unsafe-no-fsync", false, "do not wait for the disk: only for clusters that may be lost")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("--data-dir is required")
	}
	clientURL, err := url.Parse(*client)
	if err != nil {
		return fmt.Errorf("--listen-client-urls: %w", err)
	}
	peerURL, err := url.Parse(*peer)
	if err != nil {
		return fmt.Errorf("--listen-peer-urls: %w", err)
	}

	config := embed.NewConfig()
	config.Name = "playground"
	config.Dir = *dir
	config.LogLevel = "warn"
	config.UnsafeNoFsync = *unsafeNoFsync
	config.ListenClientUrls = []url.URL{*clientURL}
	config.AdvertiseClientUrls = []url.URL{*clientURL}
	config.ListenPeerUrls = []url.URL{*peerURL}
	config.AdvertisePeerUrls = []url.URL{*peerURL}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	// The only member hears no heartbeats; ticking slowly leaves an idle machine idle.
	config.TickMs, config.ElectionMs = 500, 5000
	// kube-apiserver compacts; a short tail of Raft entries keeps memory small.
	config.SnapshotCount, config.SnapshotCatchUpEntries = 5000, 500
	if *caFile != "" {
		config.ClientTLSInfo = transport.TLSInfo{
			CertFile: *certFile, KeyFile: *keyFile, TrustedCAFile: *caFile, ClientCertAuth: true,
		}
		config.PeerTLSInfo = config.ClientTLSInfo
	}

	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("start in %q: %w", *dir, err)
	}
	defer etcd.Close()
	select {
	case <-etcd.Server.ReadyNotify():
	case <-time.After(time.Minute):
		return fmt.Errorf("%q was not ready after a minute", *dir)
	}

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	select {
	case <-stop:
		return nil
	case err := <-etcd.Err():
		return err
	}
}
