package registry

import (
	"context"
	"fmt"

	"github.com/distribution/distribution/v3/registry/storage/driver/s3-aws"

	"tidelock.dev"
)

// S3Config names a bucket of a service that speaks S3.
type S3Config struct {
	Endpoint  string // URL of the service; default that of AWS in the region
	Region    string // default "us-east-1"
	Bucket    string // required
	Prefix    string // of all keys, without slashes around it
	AccessKey string // default as AWS's own tools find it
	SecretKey tidelock.Secret
	PathStyle bool // the bucket is named in the path and not in the host
}

func openS3(ctx context.Context, c S3Config) (medium, error) {
	if c.Region == "" {
		c.Region = "us-east-1"
	}
	parameters := map[string]any{
		"bucket": c.Bucket, "region": c.Region, "rootdirectory": c.Prefix, "forcepathstyle": c.PathStyle,
		"accesskey": c.AccessKey, "secretkey": c.SecretKey.Reveal(),
	}
	if c.Endpoint != "" {
		parameters["regionendpoint"] = c.Endpoint
	}
	d, err := s3.FromParameters(ctx, parameters)
	if err != nil {
		return nil, fmt.Errorf("open the bucket %q: %w", c.Bucket, err)
	}
	return d, nil
}
