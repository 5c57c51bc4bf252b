package bus

import (
	"fmt"
	"log/slog"
)

// natsLogger gives what the in-process server says to our log. Its notices
// are about itself, so they are debug to us; and its fatal errors are only
// errors, because only main ends the process.
type natsLogger struct{ log *slog.Logger }

func (l natsLogger) Noticef(format string, v ...any) { l.log.Debug(said, text(format, v)) }
func (l natsLogger) Warnf(format string, v ...any)   { l.log.Warn(said, text(format, v)) }
func (l natsLogger) Errorf(format string, v ...any)  { l.log.Error(said, text(format, v)) }
func (l natsLogger) Fatalf(format string, v ...any)  { l.log.Error(said, text(format, v)) }
func (l natsLogger) Debugf(format string, v ...any)  { l.log.Debug(said, text(format, v)) }
func (l natsLogger) Tracef(format string, v ...any)  {}

const said = "bus server reported"

func text(format string, v []any) slog.Attr {
	return slog.String("text", fmt.Sprintf(format, v...))
}
