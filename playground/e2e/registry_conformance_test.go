package e2e_test

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/supervisor"
)

// conformanceDoc is where the result is kept; it says how it is made anew.
const conformanceDoc = "../../docs/conformance.md"

// TestConformance runs the test of the OCI distribution specification with
// everything that the registry offers, and compares its result with the one
// that is documented.
func TestConformance(t *testing.T) {
	t.Parallel()
	set, err := component.Default(t.Context(), component.Conformance)
	if err != nil {
		t.Fatal(err)
	}
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true})
	address, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	f.Project("conformance/one", "private")
	f.Project("conformance/two", "private")
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), set[component.Conformance].Binary())
	cmd.Dir = dir
	cmd.Env = append(supervisor.Environment(dir), "SSL_CERT_FILE="+f.CAFile,
		"OCI_VERSION=1.1", "OCI_REGISTRY="+address.Host, "OCI_USERNAME=root", "OCI_PASSWORD="+f.Token,
		"OCI_REPO1=conformance/one", "OCI_REPO2=conformance/two/image", "OCI_RESULTS_DIR="+filepath.Join(dir, "results"),
		// Beyond what is on by default: what the specification leaves open.
		"OCI_API_BLOBS_UPLOAD_CANCEL=true", "OCI_API_BLOBS_DIGEST_HEADER=true",
		"OCI_API_MANIFESTS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_TAG_PARAM=true")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the conformance test: %v\n%s", err, out)
	}
	got := conformanceTables(string(out))
	if strings.Count(got, "\n") < 50 {
		t.Fatalf("the conformance test says too little:\n%s", out)
	}
	doc, err := os.ReadFile(conformanceDoc)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- begin -->\n", "<!-- end -->\n"
	before, rest, _ := strings.Cut(string(doc), begin)
	kept, after, ok := strings.Cut(rest, end)
	switch {
	case !ok:
		t.Fatalf("%s has no place for the result", conformanceDoc)
	case kept == got:
	case os.Getenv("TIDELOCK_UPDATE") != "":
		text := []byte(before + begin + got + end + after)
		if err := os.WriteFile(conformanceDoc, text, 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s tells another result; if this one is right, run the test again with TIDELOCK_UPDATE=1:\n%s", conformanceDoc, got)
	}
}

var conformanceLine = regexp.MustCompile(`^  (\S.*?)\.*: +(\S+)$`)

// conformanceTables makes the summary that the test prints readable: a table
// for each part.
func conformanceTables(out string) string {
	var b bytes.Buffer
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		if part, ok := strings.CutSuffix(line, " conformance:"); ok {
			fmt.Fprintf(&b, "\n| %s | result |\n|---|---|\n", part)
		} else if strings.HasPrefix(line, "OCI Conformance Result: ") {
			fmt.Fprint(&b, "\n| single tests | number |\n|---|---|\n")
		} else if match := conformanceLine.FindStringSubmatch(line); match != nil && b.Len() > 0 {
			fmt.Fprintf(&b, "| %s | %s |\n", strings.Replace(match[1], "FAIL", "Fail", 1), strings.ToLower(match[2]))
		}
	}
	return b.String() + "\n"
}
