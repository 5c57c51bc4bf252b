package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// logging is how a long-running command speaks.
type logging struct {
	level  string
	format string
}

func (l *logging) add(flags *pflag.FlagSet) {
	flags.StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&l.format, "log-format", "auto", "text, json or auto: text on a terminal")
}

// problems are what is wrong with the flags.
func (l *logging) problems() []string {
	var found []string
	if _, err := l.parseLevel(); err != nil {
		found = append(found, fmt.Sprintf("--log-level: %q is not debug, info, warn or error", l.level))
	}
	if l.format != "text" && l.format != "json" && l.format != "auto" {
		found = append(found, fmt.Sprintf("--log-format: %q is not text, json or auto", l.format))
	}
	return found
}

func (l *logging) parseLevel() (slog.Level, error) {
	var level slog.Level
	err := level.UnmarshalText([]byte(l.level))
	return level, err
}

// logger writes to w; its level can be changed while it is used.
func (l *logging) logger(w io.Writer) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	if parsed, err := l.parseLevel(); err == nil {
		level.Set(parsed)
	}
	options := &slog.HandlerOptions{Level: level}
	if l.format == "text" || (l.format == "auto" && isTerminal(w)) {
		return slog.New(slog.NewTextHandler(w, options)), level
	}
	return slog.New(slog.NewJSONHandler(w, options)), level
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
