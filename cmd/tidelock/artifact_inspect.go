package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/spf13/cobra"

	"tidelock.dev"
	"tidelock.dev/internal/signing"
)

// An inspected is an artifact with what is attached to it.
type inspected struct {
	URL         string            `json:"url"`
	Digest      tidelock.Digest   `json:"digest"`
	MediaType   string            `json:"media_type"`
	Type        string            `json:"artifact_type"`
	Size        int64             `json:"size"`
	Subject     tidelock.Digest   `json:"subject,omitempty"`
	Annotations map[string]string `json:"annotations"`
	Parts       []partRow         `json:"parts"`
	Attached    []attachedRow     `json:"attached"`
}

type partRow struct {
	Digest    tidelock.Digest `json:"digest"`
	MediaType string          `json:"media_type"`
	Size      int64           `json:"size"`
}

// An attachedRow is a signature, an SBOM or a report.
type attachedRow struct {
	Digest      tidelock.Digest   `json:"digest"`
	Type        string            `json:"artifact_type"`
	Tag         string            `json:"tag,omitempty"` // under which cosign finds it
	Annotations map[string]string `json:"annotations"`
}

func newArtifactInspectCommand(env *environment, flags *artifactFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "inspect <url>",
		Short:   "Show an artifact, and the signatures and reports attached to it",
		Example: "  tidelock artifact inspect oci://forge.example/team/shop/web:latest",
		Args:    arguments("<url>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			image, err := flags.open(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			a, err := image.fetch()
			if err != nil {
				return err
			}
			shown := inspected{
				URL: image.String(), Digest: a.Digest, MediaType: a.MediaType, Type: a.Type, Size: a.TotalSize(), Subject: a.Subject,
				Annotations: a.Annotations, Parts: []partRow{},
			}
			if shown.Annotations == nil {
				shown.Annotations = map[string]string{}
			}
			for _, p := range a.Parts {
				shown.Parts = append(shown.Parts, partRow{p.Digest, p.MediaType, p.Size})
			}
			if shown.Attached, err = image.attached(a.Digest); err != nil {
				return err
			}
			return output.print(env.stdout, shown)
		},
	}
	output.add(cmd)
	return cmd
}

// attached lists what refers to an artifact, and what cosign keeps beside it
// under tags.
func (i *remoteImage) attached(subject tidelock.Digest) ([]attachedRow, error) {
	index, err := remote.Referrers(i.digest(subject), i.options...)
	if err != nil {
		return nil, i.explain(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, i.explain(err)
	}
	rows := []attachedRow{}
	for _, d := range list.Manifests {
		annotations := d.Annotations
		if annotations == nil {
			annotations = map[string]string{}
		}
		rows = append(rows, attachedRow{Digest: tidelock.Digest(d.Digest.String()), Type: d.ArtifactType, Annotations: annotations})
	}
	base := strings.TrimSuffix(signing.Tag(subject), ".sig")
	for _, kind := range []string{".sig", ".att", ".sbom"} {
		at := *i
		at.ref = i.ref.Context().Tag(base + kind)
		a, err := at.fetch()
		if tidelock.KindOf(err) == tidelock.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		n := slices.IndexFunc(rows, func(r attachedRow) bool { return r.Digest == a.Digest })
		if n < 0 {
			n, rows = len(rows), append(rows, attachedRow{Digest: a.Digest, Type: a.Type, Annotations: map[string]string{}})
		}
		rows[n].Tag = base + kind
	}
	return rows, nil
}

func (s inspected) table(w io.Writer) error {
	t := newTable(w)
	t.row("URL", s.URL)
	t.row("Digest", string(s.Digest))
	t.row("Media type", s.MediaType)
	t.row("Type", orDash(s.Type))
	t.row("Size", bytesOf(s.Size))
	if s.Subject != "" {
		t.row("Attached to", string(s.Subject))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Annotations)) {
		t.row(name, s.Annotations[name])
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = newTable(w, "PART", "MEDIA TYPE", "SIZE")
	for _, p := range s.Parts {
		t.row(short(string(p.Digest)), p.MediaType, bytesOf(p.Size))
	}
	if err := t.flush(); err != nil || len(s.Attached) == 0 {
		return err
	}
	fmt.Fprintln(w)
	t = newTable(w, "ATTACHED", "TYPE", "CREATED")
	for _, a := range s.Attached {
		t.row(short(string(a.Digest)), orDash(a.Type), orDash(a.Annotations[tidelock.AnnotationCreated]))
	}
	return t.flush()
}

// A signingKeyRow is a public key as the server tells it.
type signingKeyRow struct {
	ID        string `json:"id"`
	PublicKey string `json:"public_key"`
	InUse     bool   `json:"in_use"`
	RetiredAt string `json:"retired_at"`
}

func newArtifactVerifyCommand(env *environment, flags *artifactFlags) *cobra.Command {
	var output outputFlag
	var keyFile string
	cmd := &cobra.Command{
		Use:   "verify <url>",
		Short: "Verify who signed an artifact",
		Long: `Verify that an artifact was signed with a key: that of a file, such as cosign
writes, or those of the server whose registry it is. One good signature is
enough. It exits with 1 when there is none.

A key that the server retired is still good for what it signed; a warning says
so. Keep the key in a file to notice when the server itself has another one.`,
		Example: `  tidelock artifact verify oci://forge.example/team/shop/web:latest
  tidelock artifact verify oci://forge.example/team/shop/web@sha256:… --key cosign.pub`,
		Args: arguments("<url>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			image, err := flags.open(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			keys, err := image.keys(cmd.Context(), keyFile)
			if err != nil {
				return err
			}
			a, err := image.fetch()
			if err != nil {
				return err
			}
			good, err := image.verify(cmd.Context(), keys, a.Digest)
			if err != nil {
				return err
			}
			result := verified{URL: image.String(), Digest: a.Digest}
			for _, v := range good {
				result.Signatures = append(result.Signatures, signatureRow{Key: v.Key.ID, Retired: !v.Key.RetiredAt.IsZero(), Image: v.Reference})
				if !v.Key.RetiredAt.IsZero() {
					env.warnf("the key %.16s was retired at %s", v.Key.ID, v.Key.RetiredAt.Format("2006-01-02 15:04"))
				}
				if v.Reference != image.image() {
					env.warnf("it was signed as %s", v.Reference)
				}
			}
			return output.print(env.stdout, result)
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "file of one public key or several, in PEM (default: those of the server)")
	output.add(cmd)
	return cmd
}

// keys are those of a file or else of the server.
func (i *remoteImage) keys(ctx context.Context, file string) ([]signing.PublicKey, error) {
	if file != "" {
		text, err := readBounded(file)
		if err != nil {
			return nil, fmt.Errorf("read the public key: %w", err)
		}
		keys, err := signing.ParsePublicKeys(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return keys, nil
	}
	rows, err := i.source.signingKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its public keys: %w; name a file with --key", i.host(), err)
	}
	var keys []signing.PublicKey
	for _, row := range rows {
		parsed, err := signing.ParsePublicKeys([]byte(row.PublicKey))
		if err != nil || len(parsed) != 1 {
			return nil, fmt.Errorf("read the public keys of %s: %w", i.host(), errors.Join(err, errors.ErrUnsupported))
		}
		parsed[0].RetiredAt = row.retiredAt()
		keys = append(keys, parsed[0])
	}
	return keys, nil
}

// signingKeys asks the server without a token: the keys are everybody's.
func (s source) signingKeys(ctx context.Context) ([]signingKeyRow, error) {
	s.Token = tidelock.Secret{}
	c, err := s.connect()
	if err != nil {
		return nil, err
	}
	rows, err := call[[]signingKeyRow](ctx, c, http.MethodGet, "signing_keys", nil)
	return rows.value, err
}

func (i *remoteImage) verify(ctx context.Context, keys []signing.PublicKey, subject tidelock.Digest) ([]signing.Verified, error) {
	at := *i
	at.ref = i.ref.Context().Tag(signing.Tag(subject))
	d, err := remote.Get(at.ref, i.options...)
	if e, ok := errors.AsType[*transport.Error](err); ok && e.StatusCode == http.StatusNotFound {
		return nil, tidelock.Errorf(tidelock.Denied, "%s is not signed: there is no tag %s", subject, signing.Tag(subject))
	}
	if err != nil {
		return nil, at.explain(err)
	}
	return signing.Verify(ctx, keys, subject, d.Manifest, func(_ context.Context, digest tidelock.Digest) (io.ReadCloser, error) {
		return i.blob(digest)
	})
}

// A verified is what was found good.
type verified struct {
	URL        string          `json:"url"`
	Digest     tidelock.Digest `json:"digest"`
	Signatures []signatureRow  `json:"signatures"`
}

type signatureRow struct {
	Key     string `json:"key"`
	Retired bool   `json:"retired"`
	Image   string `json:"image"` // as whoever signed it called it
}

func (v verified) table(w io.Writer) error {
	fmt.Fprintf(w, "%s is signed\n\n", v.Digest)
	t := newTable(w, "KEY", "SIGNED AS")
	for _, s := range v.Signatures {
		t.row(s.Key[:16], s.Image)
	}
	return t.flush()
}
