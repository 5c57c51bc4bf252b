package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
	"tidelock.dev/internal/ociserver"
	"tidelock.dev/internal/registry"
)

// openRegistry opens the place where the content of images lies.
func (s *Server) openRegistry(ctx context.Context, log *slog.Logger) (_ *registry.Registry, err error) {
	c := registry.Config{MaxBlob: s.config.MaxBlobSize, Log: log}
	if s.config.RegistryURL == "" {
		c.Dir = filepath.Join(s.config.DataDir, "registry")
	} else if c.S3, err = parseBucket(s.config.RegistryURL); err != nil {
		return nil, fmt.Errorf("--registry-url: %w", err)
	}
	s.content, err = registry.Open(ctx, c)
	return s.content, err
}

// openImages makes the surface for registry clients.
func (s *Server) openImages(content *registry.Registry, metrics prometheus.Registerer, log *slog.Logger) error {
	key, err := ociserver.OpenKey(filepath.Join(s.config.DataDir, registryKey))
	if err != nil {
		return err
	}
	s.images, err = ociserver.New(ociserver.Config{
		Forge: s.forge, Registry: content, Key: key, URL: s.external, Limits: s.limits, Metrics: metrics, Log: log,
	})
	return err
}

// registryKey is the file of the key that signs the registry's tokens. They
// live for minutes, so it is in no backup.
const registryKey = "registry.key"

// parseBucket reads the URL of a bucket:
//
//	s3://[<access key>:<secret key>@]<host>[:<port>]/<bucket>[/<prefix>][?region=…][&tls=false][&path-style=false]
func parseBucket(raw string) (*registry.S3Config, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("is not a URL") // which may hold a secret
	}
	bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if u.Scheme != "s3" || u.Host == "" || bucket == "" {
		return nil, fmt.Errorf("%q is not s3://<host>/<bucket>", u.Redacted())
	}
	c := &registry.S3Config{Bucket: bucket, Prefix: prefix, AccessKey: u.User.Username(), PathStyle: true}
	if secret, ok := u.User.Password(); ok {
		c.SecretKey = tidelock.NewSecret(secret)
	}
	if (c.AccessKey == "") != (c.SecretKey.Reveal() == "") {
		return nil, fmt.Errorf("%q has half a key: give <access key>:<secret key>@, or neither", u.Redacted())
	}
	scheme := "https"
	for name, values := range u.Query() {
		value := values[len(values)-1]
		on, err := strconv.ParseBool(value)
		switch name {
		case "region":
			c.Region, err = value, nil
		case "tls":
			if !on {
				scheme = "http"
			}
		case "path-style":
			c.PathStyle = on
		default:
			return nil, fmt.Errorf("%q is no setting of a bucket: there are region, tls and path-style", name)
		}
		if err != nil {
			return nil, fmt.Errorf("%s=%q is neither true nor false", name, value)
		}
	}
	c.Endpoint = scheme + "://" + u.Host
	return c, nil
}
