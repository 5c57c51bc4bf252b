package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// A settingsError lists everything that is wrong with what was read from the
// environment and the configuration file.
type settingsError struct{ problems []string }

func (e *settingsError) Error() string { return strings.Join(e.problems, "; ") }

// A settings fills flags that were not given from the environment, and then
// from a YAML file whose keys are the flags' names.
type settings struct {
	flags  *pflag.FlagSet
	prefix string // of environment variables
	getenv func(string) string
	file   string // "" for none
}

// Prefixes of environment variables. The agent has its own, because a shell
// that has a user's TIDELOCK_TOKEN must not lend it to an agent.
const (
	serverVariables = "TIDELOCK_"
	agentVariables  = "TIDELOCK_AGENT_"
)

// variable is the environment variable of a flag.
func (s settings) variable(flag string) string {
	return s.prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// notSettings are flags that say how to run, not with what.
var notSettings = map[string]bool{"config": true, "help": true, "output": true}

// apply reads both and reports all problems together.
func (s settings) apply() error {
	var problems []string
	fromFile, err := s.readFile()
	if err != nil {
		problems = append(problems, err.Error())
	}
	s.flags.VisitAll(func(f *pflag.Flag) {
		node, inFile := fromFile[f.Name]
		delete(fromFile, f.Name)
		if f.Changed || notSettings[f.Name] {
			return
		}
		if value := s.getenv(s.variable(f.Name)); value != "" {
			if err := f.Value.Set(value); err != nil {
				problems = append(problems, fmt.Sprintf("--%s: %s holds %s", f.Name, s.variable(f.Name), reason(err, value)))
			}
			return
		}
		if inFile {
			if err := setFromNode(f, node); err != nil {
				problems = append(problems, fmt.Sprintf("--%s: %s line %d: %v", f.Name, s.file, node.Line, err))
			}
		}
	})
	for name, node := range fromFile {
		problems = append(problems, fmt.Sprintf("--config: %s line %d: there is no setting %q", s.file, node.Line, name))
	}
	if problems != nil {
		return &settingsError{problems}
	}
	return nil
}

// maxSettings bounds the file; a real one has a screenful of lines.
const maxSettings = 1 << 20

func (s settings) readFile() (map[string]yaml.Node, error) {
	if s.file == "" {
		return nil, nil
	}
	f, err := os.Open(s.file)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	defer f.Close()
	values := map[string]yaml.Node{}
	err = yaml.NewDecoder(io.LimitReader(f, maxSettings)).Decode(&values)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("--config: %s: %s", s.file, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return values, nil
}

func setFromNode(f *pflag.Flag, node yaml.Node) error {
	if list, ok := f.Value.(pflag.SliceValue); ok && node.Kind == yaml.SequenceNode {
		var values []string
		if err := node.Decode(&values); err != nil {
			return errors.New("the list must hold texts only")
		}
		return list.Replace(values)
	}
	if node.Kind != yaml.ScalarNode {
		return errors.New("must be a single value")
	}
	if err := f.Value.Set(node.Value); err != nil {
		return errors.New(reason(err, node.Value))
	}
	return nil
}

// reason shortens what strconv and time say of a value.
func reason(err error, value string) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return fmt.Sprintf("%q: %s", value, text)
}
