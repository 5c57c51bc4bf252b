package explain

import (
	"bytes"
	"errors"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"tidelock.dev"
)

// CheckYAML looks for what keeps a file from being read as YAML at all; other
// files than .yaml and .yml pass. What the file means is not looked at.
func CheckYAML(name string, content []byte) (tidelock.Finding, bool) {
	if ext := path.Ext(name); ext != ".yaml" && ext != ".yml" {
		return tidelock.Finding{}, true
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	for {
		var document yaml.Node // aliases are not followed, so that none can grow
		err := decode(decoder, &document)
		if errors.Is(err, io.EOF) {
			return tidelock.Finding{}, true
		}
		if err != nil {
			return tidelock.Finding{
				Check: "syntax", Path: plain(name, maxWhat), Line: lineOf(err.Error()),
				Message: plain(strings.TrimPrefix(numbered.ReplaceAllString(err.Error(), ""), "yaml: "), maxWhat),
			}, false
		}
	}
}

// decode is the decoder's, whose parser panics on some of what is not YAML.
func decode(d *yaml.Decoder, into *yaml.Node) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("yaml: it cannot be parsed")
		}
	}()
	return d.Decode(into)
}

var numbered = regexp.MustCompile(`^yaml: line [0-9]+: `)

// lineOf is the line that an error is about. The parser, unlike the scanner,
// counts from 0, and neither names the line when it counts as 0.
func lineOf(message string) int {
	line, _ := strconv.Atoi(group(yamlLine, message, 1))
	if strings.Contains(message, "did not find expected") || line == 0 {
		line++
	}
	return line
}
