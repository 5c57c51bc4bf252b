package explain

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"tidelock.dev"
)

// A sign tells what a failure means by the reason of its condition and by
// words in its message.
type sign struct {
	code    tidelock.CauseCode
	reasons []string // one of them; none: any
	words   []string // one of them, in lower case; none: any
}

func (s sign) fits(reason, text string) bool {
	return (len(s.reasons) == 0 || slices.Contains(s.reasons, reason)) &&
		(len(s.words) == 0 || slices.ContainsFunc(s.words, func(w string) bool { return strings.Contains(text, w) }))
}

// Names say nothing of what is the matter with what has them. They are looked
// for by hand: a project may have thousands of messages, and patterns take most
// of an answer's time.
const (
	spaces     = " \t\n\r\f"
	namesEnd   = spaces + `'"`
	namesBegin = namesEnd + "(["
	filesEnd   = namesEnd + ":"
)

// withoutPaths leaves the names of paths, URLs and objects out of a text.
func withoutPaths(text string) string {
	var b strings.Builder
	for {
		slash := strings.IndexByte(text, '/')
		if slash < 0 {
			b.WriteString(text)
			return b.String()
		}
		begin, end := 1+strings.LastIndexAny(text[:slash], namesBegin), len(text)
		if i := strings.IndexAny(text[slash:], namesEnd); i >= 0 {
			end = slash + i
		}
		name := strings.TrimRight(text[begin:end], ":.,;)]")
		switch {
		case begin+len(name) <= slash+1 || name == "i/o":
			b.WriteString(text[:end])
			text = text[end:]
		default:
			b.WriteString(text[:begin] + "…")
			text = text[begin+len(name):]
		}
	}
}

// withoutFiles leaves the names of files out of a text.
func withoutFiles(text string) string {
	var b strings.Builder
	for {
		word, rest := text, ""
		if i := strings.IndexAny(text, filesEnd); i >= 0 {
			word, rest = text[:i], text[i:]
		}
		if end := fileEnd(word); end > 0 {
			b.WriteString("…")
			word = word[end:]
		}
		b.WriteString(word)
		if rest == "" {
			return b.String()
		}
		b.WriteByte(rest[0])
		text = rest[1:]
	}
}

// fileEnd is where the name of a file ends that a word begins with; 0 for none.
func fileEnd(word string) (end int) {
	if !strings.Contains(word, ".") {
		return 0
	}
	for _, extension := range []string{".yaml", ".yml", ".json", ".env"} {
		at := strings.LastIndex(word, extension)
		after := at + len(extension)
		if at > 0 && (after == len(word) || !isWord(word[after])) {
			end = max(end, after)
		}
	}
	return end
}

func isWord(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// classify returns the code of the first sign that fits.
func classify(signs []sign, reason, message string) (tidelock.CauseCode, bool) {
	text := withoutPaths(strings.ToLower(message[:min(len(message), maxRead)]))
	for _, s := range signs {
		if s.fits(reason, text) {
			return s.code, true
		}
	}
	return "", false
}

// sourceSigns read the conditions of source-controller. The messages of a
// fetch come from go-git, ssh, the Go standard library and registries.
var sourceSigns = []sign{
	{tidelock.CauseVerifyFailed, []string{"InvalidCommitSignature", "InvalidTagSignature", "InvalidGitObject", "InvalidVerificationMode", "VerificationError"}, nil},
	{tidelock.CauseVerifyFailed, nil, []string{"signature verification", "failed to verify the signature", "no matching signatures"}},
	{tidelock.CauseTLS, nil, []string{"x509:", "tls: ", "certificate", "gave http response to https", "remote error: tls"}},
	{tidelock.CauseCredentialRefused, []string{"AuthenticationFailed"}, nil},
	{tidelock.CauseCredentialRefused, nil, []string{
		"authentication required", "authorization failed", "authentication failed", "unauthorized", "unable to authenticate",
		"permission denied", "access denied", "denied: ", "invalid auth", "status code: 401", "status code: 403", "401 ", "403 ", "forbidden",
		"knownhosts:", "host key", "ssh: handshake failed",
		"repository not found", // a private project looks so to whoever may not see it
	}},
	{tidelock.CauseSourceUnreachable, nil, []string{
		"no such host", "server misbehaving", "name resolution", "connection refused", "connection reset", "no route to host", "network is unreachable",
		"i/o timeout", "context deadline exceeded", "client.timeout", "tls handshake timeout", "unexpected eof", ": eof", "broken pipe",
		"bad gateway", "service unavailable", "gateway timeout", "status code: 50", "proxyconnect",
	}},
}

// appliedSigns read what an API server says, through whichever controller.
// Their order matters: a field that is immutable is also invalid, and a quota
// is also "forbidden".
var appliedSigns = []sign{
	{tidelock.CauseDecryptionFailed, nil, []string{"is sops encrypted"}},
	{tidelock.CauseImmutableField, nil, []string{
		"is immutable", "immutable field", "are immutable", "cannot change roleref", "may not change once set",
		"updates to statefulset spec", "pod updates may not change", "is forbidden after creation",
	}},
	{tidelock.CauseQuota, nil, []string{"exceeded quota"}},
	{tidelock.CauseObjectRejected, nil, []string{
		"admission webhook", "failed calling webhook", "validatingadmissionpolicy", "violates podsecurity", "denied the request", "denied request",
	}},
	{tidelock.CauseNamespaceMissing, nil, []string{`namespace not specified`, "because it is being terminated"}},
	{tidelock.CauseCRDMissing, nil, []string{"no matches for kind", "ensure crds are installed", "the server could not find the requested resource", "no kind is registered"}},
	{tidelock.CauseForbidden, nil, []string{
		"is forbidden: user", "cannot patch resource", "cannot create resource", "cannot get resource", "cannot list resource", "cannot delete resource",
		"cannot update resource", "cannot impersonate", "attempting to grant rbac permissions", "unauthorized",
		"cross-namespace references have been blocked", "(forbidden)",
	}},
	{tidelock.CauseObjectRejected, nil, []string{
		"(invalid)", "(badrequest)", "is invalid:", "unknown field", "strict decoding", "failed to create typed", "error validating",
		"cannot unmarshal", "in conversion", "schema", "must be specified", "(requestentitytoolarge)", "does not conform",
	}},
}

// namespaceMissing is a sign of appliedSigns that needs more than words.
var namespaceMissing = regexp.MustCompile(`namespaces? "([^"]{1,253})" not found`)

// kustomizeSigns read the conditions of kustomize-controller.
var kustomizeSigns = []sign{
	{tidelock.CausePathNotFound, []string{"ArtifactFailed"}, []string{"path not found", "no such file or directory", "not a directory"}},
	{tidelock.CauseForbidden, []string{"AccessDenied"}, nil},
	{tidelock.CauseDecryptionFailed, []string{"BuildFailed"}, []string{"decrypt", "sops", "data key"}},
	{tidelock.CauseSubstitutionFailed, []string{"BuildFailed"}, []string{"post build failed", "substitut", "envsubst", "var name is invalid", "variable not set"}},
	{tidelock.CauseBuildFailed, []string{"BuildFailed"}, nil},
}

// helmSigns read the conditions of helm-controller.
var helmSigns = []sign{
	{tidelock.CauseForbidden, []string{"AccessDenied"}, nil},
	{tidelock.CauseHelmValues, []string{"ValuesError"}, nil},
	{tidelock.CausePathNotFound, []string{"SourceNotReady", "ArtifactFailed", "InvalidChartReference"}, []string{"no such file or directory", "chart.yaml file is missing", "no chart found", "could not find chart"}},
	{tidelock.CauseBuildFailed, []string{"SourceNotReady", "ArtifactFailed", "InvalidChartReference"}, []string{"chart pull error", "could not load chart", "build error", "validation: chart.metadata", "dependency build", "invalid chart"}},
	{tidelock.CauseHelmValues, nil, []string{"don't meet the specifications of the schema", "values validation", "could not resolve", "chart values reference", "execution error at", "nil pointer evaluating"}},
	{tidelock.CauseBuildFailed, nil, []string{"yaml parse error", "parse error at", "template: ", "error converting yaml", "unable to build kubernetes objects from release manifest: error parsing"}},
}

// Helm's conditions say that it did, or undid, something.
var helmReasons = []string{"InstallFailed", "UpgradeFailed", "RollbackFailed", "RollbackSucceeded", "UninstallFailed", "UninstallSucceeded", "TestFailed"}

// helmWaited are words of an install or upgrade that waited in vain for its
// objects to be ready.
var helmWaited = []string{"timed out waiting", "context deadline exceeded", "not ready. status", "progress deadline exceeded", "resource not ready"}

// failureOf is the code of an applier's failure; CauseUnhealthy when it failed
// because of the health of its objects.
func failureOf(o *tidelock.Observation) tidelock.CauseCode {
	kind, _, _ := o.Object.Split()
	signs, said, other := kustomizeSigns, withoutFiles(o.Message), tidelock.CauseApplyFailed
	if kind == tidelock.HelmRelease {
		signs, said = helmSigns, o.Message
		if slices.Contains(helmReasons, o.Reason) {
			other = tidelock.CauseHelmFailed
		}
	}
	if o.Reason == "HealthCheckFailed" {
		return tidelock.CauseUnhealthy
	}
	if code, ok := classify(signs, o.Reason, said); ok {
		return code
	}
	if read(namespaceMissing, o.Message) != nil {
		return tidelock.CauseNamespaceMissing
	}
	if code, ok := classify(appliedSigns, o.Reason, o.Message); ok {
		return code
	}
	if other == tidelock.CauseHelmFailed {
		if _, waited := classify([]sign{{words: helmWaited}}, "", o.Message); waited {
			return tidelock.CauseUnhealthy
		}
	}
	return other
}

// What is read out of messages to be said again in a sentence. Each is looked
// for in the first maxRead bytes.
var (
	deniedUser   = regexp.MustCompile(`[Uu]ser "(?:system:serviceaccount:)?([^"]{1,300})" cannot ([a-z]+) resource "([^"]{1,253})"(?:[^"]*"[^"]{0,253}")? (?:in the namespace "([^"]{1,253})"|at the cluster scope)`)
	missingKind  = regexp.MustCompile(`no matches for kind "([^"]{1,253})" in version "([^"]{1,253})"`)
	quotaPart    = regexp.MustCompile(`exceeded quota: ([^,\n]{1,253}), requested: ([^\n;]{1,200}), limited: ([^\n;\]]{1,200})`)
	objectAtHand = regexp.MustCompile(`\b([A-Z][A-Za-z0-9]{0,62}/[a-z0-9][a-z0-9.:-]{0,252}(?:/[a-z0-9][a-z0-9.:-]{0,252})?) (?:dry-run failed|apply failed|namespace not specified|not found|is SOPS encrypted|immutable field)`)
	fieldAtFault = regexp.MustCompile(`is invalid: \[?([A-Za-z][A-Za-z0-9_.\[\]()"'/-]{0,200}): `)
	typedField   = regexp.MustCompile(`failed to create typed [^:]{0,200}: (\.[A-Za-z0-9_.\[\]"'=/-]{1,200}): `)
	unknownField = regexp.MustCompile(`unknown field "([^"]{1,200})"`)
	variable     = regexp.MustCompile(`variable not set \(strict mode\): "?([A-Za-z0-9_]{1,100})`)
	dependsOn    = regexp.MustCompile(`(?:dependency '([^']{1,253})/([^']{1,253})'|unable to get '([^']{1,253})/([^']{1,253})' dependency)`)
	waitingFor   = regexp.MustCompile(`\[([A-Z][A-Za-z0-9]{0,62}/[a-z0-9./:-]{1,506}) status: '([A-Za-z]{1,40})'`)

	temporary  = regexp.MustCompile(`/(?:[^\s/'":]{1,100}/){0,8}kustomization-[0-9]+/([^\s'":]{1,500})`)
	inFile     = regexp.MustCompile(`in File: ([^\s'":]{1,500})`)
	fromFile   = regexp.MustCompile(`accumulating resources from '([^'\n]{1,500})'`)
	yamlLine   = regexp.MustCompile(`(?:yaml: (?:unmarshal errors:\s+)?|json: |error )?line ([0-9]{1,9})\b`)
	helmAt     = regexp.MustCompile(`(?:template: |parse error at \(|execution error at \()([^\s:()]{1,500}):([0-9]{1,9})`)
	helmYAML   = regexp.MustCompile(`YAML parse error on ([^\s:]{1,500}): error converting YAML to JSON: yaml: line ([0-9]{1,9})`)
	fileSuffix = []string{".yaml", ".yml", ".json", ".env", ".properties", ".tpl", ".txt"}
)

// literals are in every text that matches a pattern: most texts need not be
// searched.
var literals = map[*regexp.Regexp]string{
	namespaceMissing: `" not found`, deniedUser: `" cannot `, missingKind: "no matches for kind", quotaPart: "exceeded quota: ",
	fieldAtFault: "is invalid: ", typedField: "failed to create typed ", unknownField: "unknown field ", variable: "variable not set",
	dependsOn: "dependency", waitingFor: " status: '", temporary: "kustomization-", inFile: "in File: ", fromFile: "accumulating resources from ",
	yamlLine: "line ", helmYAML: "YAML parse error on ",
}

// read finds the groups of a pattern in a message; nil when it is not there.
func read(pattern *regexp.Regexp, message string) []string {
	message = message[:min(len(message), maxRead)]
	if !strings.Contains(message, literals[pattern]) {
		return nil
	}
	return pattern.FindStringSubmatch(message)
}

// group is one group of a pattern in a message, "" when it is not there.
func group(pattern *regexp.Regexp, message string, n int) string {
	if m := read(pattern, message); m != nil {
		return m[n]
	}
	return ""
}

// place finds the file, from the root of the repository, and the line that a
// failed build is about; "" and 0 where the message names none. Below is the
// path that was built.
func place(message, below string) (file string, line int) {
	for _, pattern := range []*regexp.Regexp{helmYAML, helmAt} {
		if m := read(pattern, message); m != nil {
			line, _ = strconv.Atoi(m[2])
			_, inChart, _ := strings.Cut(m[1], "/") // the first part is the chart's name
			return inChart, line
		}
	}
	line, _ = strconv.Atoi(group(yamlLine, message, 1))
	if all := temporary.FindAllStringSubmatch(message[:min(len(message), maxRead)], 20); all != nil {
		for _, m := range all { // a file goes before the directory that it is in
			if slices.Contains(fileSuffix, path.Ext(m[1])) {
				return path.Clean(m[1]), line
			}
		}
	}
	for _, pattern := range []*regexp.Regexp{inFile, fromFile} {
		if name := group(pattern, message, 1); name != "" && !strings.Contains(name, "://") {
			if joined := path.Join("/", below, name); len(joined) > 1 {
				return joined[1:], line
			}
		}
	}
	if strings.Contains(message, "struct field Kustomization.") || strings.Contains(message, "invalid Kustomization") {
		return path.Join("/", below, "kustomization.yaml")[1:], line
	}
	return "", line
}

// FileOf is the file that the failed build of an applier is about, from the
// root of the repository, "" if its message names none. Reading reports whether
// the message is about a file that cannot be read.
func FileOf(o *tidelock.Observation) (file string, reading bool) {
	file, _ = place(o.Message, o.Path)
	_, reading = classify([]sign{{words: []string{"yaml: ", "malformedyaml", "failed to decode", "json: "}}}, "", o.Message)
	return file, reading
}
