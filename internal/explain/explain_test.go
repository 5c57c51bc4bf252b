package explain

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"tidelock.dev"
)

const (
	commit = tidelock.CommitID("1a2b3c4d5e6f1a2b3c4d5e6f1a2b3c4d5e6f1a2b")
	older  = tidelock.CommitID("0000000000000000000000000000000000000001")
	newer  = tidelock.CommitID("ffffffffffffffffffffffffffffffffffffffff")

	revision      = "main@sha1:" + string(commit)
	olderRevision = "main@sha1:" + string(older)
	newerRevision = "main@sha1:" + string(newer)

	site  = tidelock.ObjectID("GitRepository/flux-system/site")
	apps  = tidelock.ObjectID("Kustomization/flux-system/apps")
	infra = tidelock.ObjectID("Kustomization/flux-system/infra")
	dns   = tidelock.ObjectID("Kustomization/flux-system/dns")
	web   = tidelock.ObjectID("HelmRelease/shop/web")
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

// pushed is a commit that was pushed a while ago and announced to a source that
// is well; nothing of it is in the cluster.
func pushed() Facts {
	return Facts{
		Now: now, Project: "team/site", Environment: "production", Commit: commit,
		Refs: []tidelock.RefName{"refs/heads/main"}, PushedAt: ago(10 * time.Minute),
		Agent: 1, AgentName: "prod", AgentPath: "ops/infra/prod",
		Source: tidelock.AgentSource{
			Agent: 1, Source: tidelock.SourceID(site), Project: 7, Ref: "refs/heads/main", Wanted: commit,
			Revision: olderRevision, State: tidelock.Delivered, Since: ago(10 * time.Minute), UpdatedAt: ago(10 * time.Minute),
		},
		Head: Same, Fetched: Before, Applied: Before, Attempted: Before,
		Announcement: &tidelock.Announcement{
			Agent: 1, Source: tidelock.SourceID(site), Number: 3, Commit: commit, State: tidelock.Handled, Via: "receiver", Attempts: 1,
			SentAt: ago(10 * time.Minute), AnnouncedAt: ago(10 * time.Minute), CalledAt: ago(10 * time.Minute), AnsweredAt: ago(10 * time.Minute),
			HandledAt: ago(10 * time.Minute),
		},
		Fetch: &tidelock.Observation{
			Agent: 1, Object: site, State: tidelock.ObservedReady, Reason: "Succeeded", Revision: olderRevision,
			Interval: time.Hour, Since: ago(time.Hour), UpdatedAt: ago(10 * time.Minute),
		},
		Applier: &tidelock.Observation{
			Agent: 1, Object: apps, Project: 7, State: tidelock.ObservedReady, Reason: "ReconciliationSucceeded",
			Revision: olderRevision, Attempted: olderRevision, Source: tidelock.SourceID(site), Path: "./deploy", Namespace: "flux-system",
			Health: tidelock.HealthHealthy, Objects: 4, Since: ago(time.Hour), UpdatedAt: ago(10 * time.Minute),
		},
		Newer: true,
	}
}

// fetched is pushed, and the source has it.
func fetched() Facts {
	f := pushed()
	f.Fetched, f.Source.Revision, f.Source.State = Same, revision, tidelock.Converged
	f.Fetch.Revision = revision
	f.Announcement.State, f.Announcement.FetchedAt = tidelock.Converged, ago(9*time.Minute)
	return f
}

// failed is fetched, and its applier failed with it.
func failed(reason, message string) Facts {
	f := fetched()
	f.Attempted, f.Other = Same, true
	o := f.Applier
	o.Attempted, o.State, o.Reason, o.Message, o.Since = revision, tidelock.ObservedFailed, reason, message, ago(8*time.Minute)
	return f
}

// applied is fetched and applied, and its objects are well.
func applied() Facts {
	f := fetched()
	f.Applied, f.Attempted, f.Newer = Same, Same, false
	f.Applier.Revision, f.Applier.Attempted, f.Applier.Since = revision, revision, ago(8*time.Minute)
	return f
}

// ill is applied, with an object that is not well.
func ill(since time.Duration, health tidelock.Health, reason, message string) Facts {
	f := applied()
	f.Applier.Health, f.Applier.Since = health, ago(since)
	f.Applier.Unhealthy = []tidelock.ObjectHealth{{
		Kind: "apps/Deployment", Namespace: "shop", Name: "web", Health: health, Reason: reason, Message: message, Pod: "web-7d4b-x2x",
	}}
	return f
}

// promises are what holds of every answer.
func promises(t *testing.T, v tidelock.Verdict) {
	t.Helper()
	if _, known := order[v.Code]; !known {
		t.Errorf("code %q is not on the path", v.Code)
	}
	if v.Blocking() && len(v.Evidence) == 0 {
		t.Errorf("%s is blamed without evidence", v.Code)
	}
	if v.Sentence == "" {
		t.Errorf("%s says nothing", v.Code)
	}
	if v.Blocking() && v.Next == "" {
		t.Errorf("%s gives no advice", v.Code)
	}
	size := 0
	check := func(text string, most int) {
		t.Helper()
		size += len(text)
		if len(text) > most {
			t.Errorf("a text of %d bytes is longer than %d", len(text), most)
		}
		for _, r := range text {
			if !unicode.IsPrint(r) {
				t.Errorf("%q holds %U, which is not printable", text, r)
				break
			}
		}
	}
	for _, o := range append([]tidelock.Verdict{v}, v.Also...) {
		check(o.Sentence, maxSentence)
		check(o.Next, maxNext)
		check(string(o.Object), 3*maxWhere)
		check(o.Environment, maxWhere)
		for _, e := range o.Evidence {
			check(e.Where, maxWhere)
			check(e.What, maxWhat)
		}
	}
	if most := 64 << 10; size > most {
		t.Errorf("an answer of %d bytes is too long", size)
	}
}

// text is everything that an answer says.
func text(v tidelock.Verdict) string {
	parts := []string{v.Sentence, v.Next}
	for _, e := range v.Evidence {
		parts = append(parts, e.Where, e.What)
	}
	return strings.Join(parts, "\n")
}

func check(t *testing.T, f Facts, want tidelock.CauseCode, says string) tidelock.Verdict {
	t.Helper()
	v := Explain(f)
	promises(t, v)
	if v.Code != want {
		t.Errorf("got %s (%s), want %s", v.Code, v.Sentence, want)
	}
	if !strings.Contains(text(v), says) {
		t.Errorf("%q is not said in:\n%s", says, text(v))
	}
	if v.Commit != f.Commit || v.Environment != f.Environment {
		t.Errorf("it is about %s in %q", v.Commit, v.Environment)
	}
	return v
}

// What Flux says of sources, in its own words.
func TestSourceFailures(t *testing.T) {
	t.Parallel()
	const clone = "failed to checkout and determine revision: unable to clone 'https://forge.test/team/site.git': "
	for _, c := range []struct {
		reason, message string
		want            tidelock.CauseCode
	}{
		{"AuthenticationFailed", "failed to get secret 'flux-system/site': Secret \"site\" not found", tidelock.CauseCredentialRefused},
		{"AuthenticationFailed", "failed to configure authentication options: invalid 'https' auth option: 'password' requires 'username' to be set", tidelock.CauseCredentialRefused},
		{"GitOperationFailed", clone + "authentication required: HTTP Basic: Access denied.", tidelock.CauseCredentialRefused},
		{"GitOperationFailed", clone + "authorization failed", tidelock.CauseCredentialRefused},
		{"GitOperationFailed", clone + "repository not found: Project Not Found", tidelock.CauseCredentialRefused},
		{"GitOperationFailed", clone + "unexpected client error: unexpected requesting \"https://forge.test/team/site.git/info/refs?service=git-upload-pack\" status code: 403", tidelock.CauseCredentialRefused},
		{"GitOperationFailed", clone + "unknown error: ssh: handshake failed: ssh: unable to authenticate, attempted methods [none publickey], no supported methods remain", tidelock.CauseCredentialRefused},
		{"GitOperationFailed", clone + "ssh: handshake failed: knownhosts: key mismatch", tidelock.CauseCredentialRefused},
		{"GitOperationFailed", clone + "Get \"https://forge.test/team/site.git/info/refs?service=git-upload-pack\": tls: failed to verify certificate: x509: certificate signed by unknown authority", tidelock.CauseTLS},
		{"GitOperationFailed", clone + "Get \"https://forge.test/…\": x509: certificate has expired or is not yet valid: current time 2026-11-23T12:00:00Z is after 2026-01-01T00:00:00Z", tidelock.CauseTLS},
		{"GitOperationFailed", clone + "Get \"https://forge.test/…\": http: server gave HTTP response to HTTPS client", tidelock.CauseTLS},
		{"GitOperationFailed", clone + "Get \"https://forge.test/…\": dial tcp: lookup forge.test on 10.96.0.10:53: no such host", tidelock.CauseSourceUnreachable},
		{"GitOperationFailed", clone + "Get \"https://forge.test/…\": dial tcp 10.0.0.1:443: connect: connection refused", tidelock.CauseSourceUnreachable},
		{"GitOperationFailed", clone + "Get \"https://forge.test/…\": dial tcp 10.0.0.1:443: i/o timeout", tidelock.CauseSourceUnreachable},
		{"GitOperationFailed", "failed to checkout and determine revision: context deadline exceeded", tidelock.CauseSourceUnreachable},
		{"GitOperationFailed", clone + "couldn't find remote ref \"refs/heads/prod\"", tidelock.CauseSourceFailed},
		{"GitOperationFailed", "failed to checkout and determine revision: no match found for semver: >=2.0.0", tidelock.CauseSourceFailed},
		{"EmptyGitRepository", "git repository is empty", tidelock.CauseSourceFailed},
		{"URLInvalid", "failed to parse url 'https://[': missing ']' in host", tidelock.CauseSourceFailed},
		{"InvalidCommitSignature", "signature verification of commit '1a2b3c' failed: unable to verify Git commit: unable to verify payload with any of the given key rings", tidelock.CauseVerifyFailed},
		{"VerificationError", "PGP public keys secret error: Secret \"keys\" not found", tidelock.CauseVerifyFailed},
		{"VerificationError", "failed to verify the signature using provider 'cosign': no matching signatures", tidelock.CauseVerifyFailed},
		{"OCIArtifactPullFailed", "failed to determine artifact digest: GET https://forge.test/jwt/auth?scope=repository%3Ateam%2Fsite%3Apull&service=container_registry: DENIED: access forbidden", tidelock.CauseCredentialRefused},
		{"OCIArtifactPullFailed", "failed to determine artifact digest: GET https://forge.test/v2/team/site/manifests/latest: MANIFEST_UNKNOWN: manifest unknown", tidelock.CauseSourceFailed},
		{"OCIArtifactPullFailed", "failed to pull artifact from 'oci://forge.test/team/site': Get \"https://forge.test/v2/\": EOF", tidelock.CauseSourceUnreachable},
		{"StorageOperationFailed", "unable to archive artifact to storage: no space left on device", tidelock.CauseSourceFailed},
	} {
		f := pushed()
		f.Fetch.State, f.Fetch.Reason, f.Fetch.Message, f.Fetch.Since = tidelock.ObservedFailed, c.reason, c.message, ago(9*time.Minute)
		v := check(t, f, c.want, c.message)
		if v.Object != site {
			t.Errorf("%s: it is about %s", c.message, v.Object)
		}
		// Seen only by what the announcement says, it is the same.
		f.Fetch = nil
		f.Announcement.State, f.Announcement.Message = tidelock.Failed, c.message
		if strings.HasSuffix(c.reason, "OperationFailed") || c.reason == "OCIArtifactPullFailed" {
			check(t, f, c.want, c.message)
		}
	}
}

// What Flux says of Kustomizations, and API servers by its mouth.
func TestKustomizationFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		reason, message string
		want            tidelock.CauseCode
		says            string
	}{
		{"ArtifactFailed", "kustomization path not found: stat /tmp/kustomization-3512/deploy: no such file or directory", tidelock.CausePathNotFound, "path ./deploy is not in the source"},
		{"BuildFailed", "failed to decode Kubernetes YAML from /tmp/kustomization-3512/deploy/web.yaml: MalformedYAMLError: yaml: line 12: could not find expected ':'", tidelock.CauseBuildFailed, "deploy/web.yaml:12"},
		{"BuildFailed", "kustomize build failed: accumulating resources: accumulation err='accumulating resources from 'web.yaml': MalformedYAMLError: yaml: line 5: mapping values are not allowed in this context in File: web.yaml': must build at directory: '/tmp/kustomization-3512/deploy/web.yaml': file is not directory", tidelock.CauseBuildFailed, "deploy/web.yaml:5"},
		{"BuildFailed", "kustomize build failed: accumulating resources: accumulation err='accumulating resources from 'gone.yaml': open /tmp/kustomization-3512/deploy/gone.yaml: no such file or directory': must build at directory: not a valid directory: evalsymlink failure on '/tmp/kustomization-3512/deploy/gone.yaml' : lstat /tmp/kustomization-3512/deploy/gone.yaml: no such file or directory", tidelock.CauseBuildFailed, "deploy/gone.yaml"},
		{"BuildFailed", "kustomize build failed: add operation does not apply: doc is missing path: \"/spec/foo/bar\": missing value", tidelock.CauseBuildFailed, "doc is missing path"},
		{"BuildFailed", "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal string into Go struct field Kustomization.resources of type []string", tidelock.CauseBuildFailed, "deploy/kustomization.yaml"},
		{"BuildFailed", "error decrypting sources: failed to decrypt and format 'secret.env' Secret field 'data': cannot get sops data key", tidelock.CauseDecryptionFailed, ""},
		{"BuildFailed", "cannot get sops decryption Secret 'flux-system/sops': Secret \"sops\" not found", tidelock.CauseDecryptionFailed, ""},
		{"BuildFailed", "decryption failed for 'v1/Secret/token': failed to verify sops data integrity", tidelock.CauseDecryptionFailed, ""},
		{"ReconciliationFailed", "Secret/shop/token is SOPS encrypted, configuring decryption is required for this secret to be reconciled", tidelock.CauseDecryptionFailed, "Secret/shop/token"},
		{"BuildFailed", "post build failed for 'apps/v1/Deployment/web': envsubst error: variable substitution failed: variable not set (strict mode): \"cluster_name\"", tidelock.CauseSubstitutionFailed, "variable cluster_name is not set"},
		{"BuildFailed", "post build failed for 'v1/ConfigMap/x': substitute from 'ConfigMap/vars' error: ConfigMap \"vars\" not found", tidelock.CauseSubstitutionFailed, "ConfigMap/vars"},
		{"BuildFailed", "'1bad' var name is invalid, must match '^[_[:alpha:]][_[:alpha:][:digit:]]*$'", tidelock.CauseSubstitutionFailed, "1bad"},
		{"ReconciliationFailed", "Deployment/shop/web dry-run failed (Forbidden): deployments.apps \"web\" is forbidden: User \"system:serviceaccount:shop:deployer\" cannot patch resource \"deployments\" in API group \"apps\" in the namespace \"shop\"", tidelock.CauseForbidden, "shop/deployer may not patch deployments in namespace shop"},
		{"ReconciliationFailed", "Namespace/shop dry-run failed (Forbidden): namespaces \"shop\" is forbidden: User \"system:serviceaccount:shop:deployer\" cannot patch resource \"namespaces\" in API group \"\" at the cluster scope", tidelock.CauseForbidden, "in the whole cluster"},
		{"ReconciliationFailed", "ClusterRole/x dry-run failed (Forbidden): clusterroles.rbac.authorization.k8s.io \"x\" is forbidden: user \"system:serviceaccount:a:b\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held", tidelock.CauseForbidden, "ClusterRole/x"},
		{"AccessDenied", "can't access 'GitRepository/a/b', cross-namespace references have been blocked", tidelock.CauseForbidden, "cross-namespace"},
		{"ReconciliationFailed", "Deployment/shop/web dry-run failed (Invalid): Deployment.apps \"web\" is invalid: spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"web2\"}}: field is immutable", tidelock.CauseImmutableField, "spec.selector cannot be changed once it is set, in Deployment/shop/web"},
		{"ReconciliationFailed", "StatefulSet/shop/db dry-run failed (Invalid): StatefulSet.apps \"db\" is invalid: spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template' are forbidden", tidelock.CauseImmutableField, "StatefulSet/shop/db"},
		{"ReconciliationFailed", "RoleBinding/shop/x dry-run failed (Invalid): RoleBinding.rbac.authorization.k8s.io \"x\" is invalid: roleRef: Invalid value: {}: cannot change roleRef", tidelock.CauseImmutableField, "roleRef"},
		{"ReconciliationFailed", "ConfigMap/shop/c dry-run failed (Invalid): ConfigMap \"c\" is invalid: data: Forbidden: field is immutable when `immutable` is set", tidelock.CauseImmutableField, "data"},
		{"ReconciliationFailed", "Deployment/shop/web not found: namespaces \"shop\" not found", tidelock.CauseNamespaceMissing, "namespace shop does not exist"},
		{"ReconciliationFailed", "Deployment/web namespace not specified: the server could not find the requested resource", tidelock.CauseNamespaceMissing, "Deployment/web"},
		{"ReconciliationFailed", "ConfigMap/shop/c dry-run failed (Forbidden): configmaps \"c\" is forbidden: unable to create new content in namespace shop because it is being terminated", tidelock.CauseNamespaceMissing, "being terminated"},
		{"ReconciliationFailed", "Certificate/shop/web dry-run failed: no matches for kind \"Certificate\" in version \"cert-manager.io/v1\"", tidelock.CauseCRDMissing, "no kind Certificate of cert-manager.io/v1"},
		{"ReconciliationFailed", "Deployment/shop/web dry-run failed (Invalid): Deployment.apps \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0", tidelock.CauseObjectRejected, "the API server refuses spec.replicas: Invalid value: -1: must be greater than or equal to 0"},
		{"ReconciliationFailed", "Deployment/shop/web dry-run failed: failed to create typed patch object (shop/web; apps/v1, Kind=Deployment): .spec.replica: field not declared in schema", tidelock.CauseObjectRejected, "spec.replica"},
		{"ReconciliationFailed", "Deployment/shop/web dry-run failed (BadRequest): Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.replicaz\"", tidelock.CauseObjectRejected, "refuses spec.replicaz"},
		{"ReconciliationFailed", "Deployment/shop/web dry-run failed (Forbidden): admission webhook \"policy.test\" denied the request: no team label", tidelock.CauseObjectRejected, "no team label"},
		{"ReconciliationFailed", "Deployment/shop/web dry-run failed (Forbidden): deployments.apps \"web\" is forbidden: ValidatingAdmissionPolicy 'labels' with binding 'all' denied request: no team label", tidelock.CauseObjectRejected, "no team label"},
		{"ReconciliationFailed", "Deployment/shop/web dry-run failed (InternalError): Internal error occurred: failed calling webhook \"policy.test\": connection refused", tidelock.CauseObjectRejected, "failed calling webhook"},
		{"ReconciliationFailed", "Pod/shop/x dry-run failed (Forbidden): pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false", tidelock.CauseObjectRejected, "PodSecurity"},
		{"ReconciliationFailed", "Pod/shop/x dry-run failed (Forbidden): pods \"x\" is forbidden: exceeded quota: compute, requested: cpu=2, used: cpu=3, limited: cpu=4", tidelock.CauseQuota, "quota compute is used up"},
		{"ReconciliationFailed", "Deployment/shop/web dry-run failed (FieldManagerConflict): Apply failed with 1 conflict", tidelock.CauseApplyFailed, "conflict"},
		{"ReconciliationFailed", "failed to build kube client: Secret \"kubeconfig\" not found", tidelock.CauseApplyFailed, "kubeconfig"},
		{"PruneFailed", "delete failed, errors: Deployment/shop/web delete failed: etcdserver: request timed out", tidelock.CauseApplyFailed, "delete failed"},
		{"HealthCheckFailed", "health check failed after 30s: timeout waiting for: [Deployment/shop/web status: 'InProgress']", tidelock.CauseUnhealthy, "waited in vain for Deployment/shop/web, which is InProgress"},
		{"HealthCheckFailed", "failed early due to stalled resources: [Job/shop/migrate status: 'Failed']", tidelock.CauseUnhealthy, "Job/shop/migrate"},
		{"", "", tidelock.CauseApplyFailed, "failed"},
	} {
		v := check(t, failed(c.reason, c.message), c.want, c.says)
		if v.Object != apps {
			t.Errorf("%s: it is about %s", c.message, v.Object)
		}
	}
}

func TestHelmFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		reason, message string
		want            tidelock.CauseCode
		says            string
	}{
		{"ValuesError", "could not resolve Secret chart values reference 'shop/values' with key 'values.yaml': Secret \"values\" not found", tidelock.CauseHelmValues, "shop/values"},
		{"InstallFailed", "Helm install failed for release shop/web with chart web@1.0.0: values don't meet the specifications of the schema(s) in the following chart(s):\nweb:\n- replicas: Invalid type. Expected: integer, given: string", tidelock.CauseHelmValues, "Expected: integer"},
		{"InstallFailed", "Helm install failed for release shop/web with chart web@1.0.0: execution error at (web/templates/deploy.yaml:3:4): image is required", tidelock.CauseHelmValues, "image is required"},
		{"UpgradeFailed", "Helm upgrade failed for release shop/web with chart web@1.0.0: template: web/templates/deploy.yaml:12:20: executing \"web/templates/deploy.yaml\" at <.Values.image.tag>: nil pointer evaluating interface {}.tag", tidelock.CauseHelmValues, "templates/deploy.yaml:12"},
		{"UpgradeFailed", "Helm upgrade failed for release shop/web with chart web@1.0.0: execution error at (web/templates/deploy.yaml:3:4): an image, please", tidelock.CauseHelmValues, "templates/deploy.yaml:3"},
		{"UpgradeFailed", "Helm upgrade failed for release shop/web with chart web@1.0.0: parse error at (web/templates/deploy.yaml:3): function \"x\" not defined", tidelock.CauseBuildFailed, "templates/deploy.yaml:3"},
		{"UpgradeFailed", "Helm upgrade failed for release shop/web with chart web@1.0.0: parse error at (web/templates/deploy.yaml:4): function \"x\" not defined", tidelock.CauseBuildFailed, "templates/deploy.yaml:4"},
		{"UpgradeFailed", "Helm upgrade failed for release shop/web with chart web@1.0.0: ConfigMap \"taken\" in namespace \"shop\" exists and cannot be imported into the current release: invalid ownership metadata", tidelock.CauseHelmFailed, "taken"},
		{"UpgradeFailed", "Helm upgrade failed for release shop/web with chart web@1.0.0: YAML parse error on web/templates/svc.yaml: error converting YAML to JSON: yaml: line 7: did not find expected key", tidelock.CauseBuildFailed, "templates/svc.yaml:7"},
		{"InstallFailed", "Helm install failed for release shop/web with chart web@1.0.0: unable to build kubernetes objects from release manifest: resource mapping not found for name: \"web\" namespace: \"\" from \"\": no matches for kind \"Certificate\" in version \"cert-manager.io/v1\"\nensure CRDs are installed first", tidelock.CauseCRDMissing, "Certificate"},
		{"UpgradeFailed", "Helm upgrade failed for release shop/web with chart web@1.1.0: cannot patch \"web\" with kind Deployment: Deployment.apps \"web\" is invalid: spec.selector: Invalid value: {}: field is immutable", tidelock.CauseImmutableField, "spec.selector"},
		{"InstallFailed", "Helm install failed for release shop/web with chart web@1.0.0: namespaces \"shop\" not found", tidelock.CauseNamespaceMissing, "namespace shop"},
		{"InstallFailed", "Helm install failed for release shop/web with chart web@1.0.0: deployments.apps is forbidden: User \"system:serviceaccount:shop:d\" cannot create resource \"deployments\" in API group \"apps\" in the namespace \"shop\"", tidelock.CauseForbidden, "may not create deployments"},
		{"UpgradeFailed", "Helm upgrade failed for release shop/web with chart web@1.1.0: another operation (install/upgrade/rollback) is in progress", tidelock.CauseHelmFailed, "in progress"},
		{"RollbackSucceeded", "Helm rollback to previous release shop/web.v1 with chart web@1.0.0 succeeded", tidelock.CauseHelmFailed, "rollback"},
		{"UninstallSucceeded", "Helm uninstall remediation for release shop/web.v1 with chart web@1.0.0 succeeded", tidelock.CauseHelmFailed, "uninstall"},
		{"TestFailed", "Helm test failed for release shop/web.v1 with chart web@1.0.0: pod web-test failed", tidelock.CauseHelmFailed, "web-test"},
		{"UpgradeFailed", "Helm upgrade failed for release shop/web with chart web@1.1.0: context deadline exceeded", tidelock.CauseHelmFailed, "deadline"},
		{"InvalidChartReference", "HelmChart shop/shop-web: invalid chart reference: stat /tmp/helmchart-shop-1/source/chart: no such file or directory", tidelock.CausePathNotFound, "chart"},
		{"ArtifactFailed", "Could not load chart: chart.yaml file is missing", tidelock.CausePathNotFound, ""},
		{"SourceNotReady", "HelmChart 'shop/shop-web' is not ready: chart pull error: stat /tmp/x/charts/web: no such file or directory", tidelock.CausePathNotFound, "charts/web"},
	} {
		f := failed(c.reason, c.message)
		f.Applier.Object, f.Applier.Path = web, ""
		check(t, f, c.want, c.says)
	}
}

// What the agent sees of what was applied.
func TestHealth(t *testing.T) {
	t.Parallel()
	const m, h = time.Minute, tidelock.HealthProgressing
	for _, c := range []struct {
		name            string
		since           time.Duration
		health          tidelock.Health
		reason, message string
		want            tidelock.CauseCode
	}{
		{"pull", m, h, "ImagePullBackOff", `Back-off pulling image "registry.test/web:v9"`, tidelock.CauseImagePull},
		{"pull, at first", m, h, "ErrImagePull", "manifest unknown", tidelock.CauseImagePull},
		{"image name", m, h, "InvalidImageName", "couldn't parse image name", tidelock.CauseImagePull},
		{"pull, given up", m, tidelock.HealthFailed, "ProgressDeadlineExceeded", `Back-off pulling image "x"`, tidelock.CauseImagePull},
		{"crash", m, h, "CrashLoopBackOff", "exit code 137: OOMKilled", tidelock.CauseCrashLoop},
		{"no command", m, h, "RunContainerError", "exec: \"serv\": executable file not found", tidelock.CauseCrashLoop},
		{"secret", m, h, "CreateContainerConfigError", `secret "db" not found`, tidelock.CauseConfigMissing},
		{"volume", m, h, "FailedMount", `configmap "web" not found`, tidelock.CauseConfigMissing},
		{"quota", m, h, "QuotaExceeded", "exceeded quota: compute", tidelock.CauseQuota},
		{"quota by words", m, h, "FailedCreate", `pods "web-1" is forbidden: exceeded quota: compute`, tidelock.CauseQuota},
		{"pod security", m, h, "PodSecurityViolated", "privileged", tidelock.CauseObjectRejected},
		{"unschedulable", m, h, "Unschedulable", "0/3 nodes are available: 3 Insufficient cpu.", tidelock.CauseUnschedulable},
		{"unschedulable just now", 5 * time.Second, h, "Unschedulable", "0/3 nodes are available", tidelock.CauseWaiting},
		{"probe", 2 * m, h, "ProbeFailing", "Readiness probe failed: HTTP 500", tidelock.CauseProbeFailing},
		{"probe, starting", 20 * time.Second, h, "ProbeFailing", "Readiness probe failed: connection refused", tidelock.CauseWaiting},
		{"starting", m, h, "ContainerCreating", "", tidelock.CauseWaiting},
		{"progressing", m, h, "", "", tidelock.CauseWaiting},
		{"never done", 6 * m, h, "", "", tidelock.CauseUnhealthy},
		{"deadline", m, tidelock.HealthFailed, "ProgressDeadlineExceeded", "ReplicaSet \"web-1\" has timed out progressing.", tidelock.CauseUnhealthy},
		{"job", m, tidelock.HealthFailed, "JobFailed", "BackoffLimitExceeded", tidelock.CauseUnhealthy},
		{"deleted", m, tidelock.HealthMissing, "NotFound", "", tidelock.CauseUnhealthy},
		{"deleted just now", 5 * time.Second, tidelock.HealthMissing, "NotFound", "", tidelock.CauseWaiting},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := ill(c.since, c.health, c.reason, c.message)
			says := ""
			if c.want != tidelock.CauseWaiting {
				says = "apps/Deployment shop/web"
			}
			check(t, f, c.want, says)
			if c.want == tidelock.CauseWaiting {
				return
			}
			// While Flux waits for it itself, the cause is the same.
			f.Applied, f.Other, f.Newer = Before, true, true
			f.Applier.State, f.Applier.Revision = tidelock.ObservedProgressing, olderRevision
			check(t, f, c.want, says)
			f.Applier.State, f.Applier.Reason, f.Applier.Message = tidelock.ObservedFailed, "HealthCheckFailed", "timeout waiting for: [Deployment/shop/web status: 'InProgress']"
			check(t, f, c.want, says)
		})
	}

	f := ill(m, h, "ImagePullBackOff", "")
	f.Applier.Outcomes = []tidelock.Outcome{{Revision: revision, AttemptedAt: ago(2 * time.Second)}}
	check(t, f, tidelock.CauseWaiting, "") // the pod may be of the revision before
	f = ill(m, tidelock.HealthFailed, "", "")
	f.Applier.Unhealthy = nil
	check(t, f, tidelock.CauseUnhealthy, "failed")
}

// What is advised can be pasted: Flux's command line draws a tree of
// Kustomizations only, and calls images otherwise than sources.
func TestFluxCommands(t *testing.T) {
	for _, tt := range []struct {
		verb string
		id   tidelock.ObjectID
		want string
	}{
		{"tree", "Kustomization/apps/shop", "flux tree kustomization shop -n apps"},
		{"tree", "HelmRelease/apps/shop", ""},
		{"get", "HelmRelease/apps/shop", "flux get helmrelease shop -n apps"},
		{"resume", "OCIRepository/apps/shop", "flux resume source oci shop -n apps"},
		{"resume", "ImageRepository/apps/shop", "flux resume image repository shop -n apps"},
		{"resume", "Kustomization/apps/$(reboot)", ""},
		{"resume", "Secret/apps/shop", ""},
	} {
		if got := flux(tt.verb, tt.id); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.verb, tt.id, got, tt.want)
		}
	}
}
