package gitserver

import (
	"errors"
	"io"

	"tidelock.dev"
)

// maxReport bounds git's answer to a push: a line for each of maxCommands.
const maxReport = 16 << 20

// A report stands between git and the client that pushes. What git says on
// the way goes through at once; its verdict on the refs is held back until
// finish, so that "ok" is only said of a push that is recorded.
type report struct {
	out      io.Writer // the client; errors are its own business
	sideBand bool

	partial []byte // of a packet that git has not written to its end
	held    []byte // the verdict, framed as git framed it
}

var errReportTooLarge = errors.New("git's report is too large")

// Write takes what git prints.
func (r *report) Write(p []byte) (int, error) {
	if !r.sideBand {
		return len(p), r.hold(p)
	}
	r.partial = append(r.partial, p...)
	for len(r.partial) >= packetHeader {
		size, err := packetSize(r.partial[:packetHeader])
		if err != nil {
			return 0, err
		}
		if size == 0 { // flush is for finish to write
			r.partial = r.partial[packetHeader:]
			continue
		}
		if len(r.partial) < size {
			break
		}
		packet := r.partial[:size]
		r.partial = r.partial[size:]
		if len(packet) > packetHeader+1 && packet[packetHeader] == bandReport {
			err = r.hold(packet)
		} else { // progress, or an empty packet that keeps the connection alive
			_, err = r.out.Write(packet)
		}
		if err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (r *report) hold(p []byte) error {
	if len(r.held)+len(p) > maxReport {
		return errReportTooLarge
	}
	r.held = append(r.held, p...)
	return nil
}

// begun reports whether there is something of a verdict.
func (r *report) begun() bool { return len(r.held) > 0 }

// say shows the user a line, if the client can.
func (r *report) say(line string) error {
	if !r.sideBand {
		return nil
	}
	_, err := r.out.Write(appendBand(nil, bandProgress, []byte(line+"\n")))
	return err
}

// finish gives the client git's verdict.
func (r *report) finish() error {
	b := r.held
	if r.sideBand {
		if len(b) == 0 {
			b = appendBand(b, bandFatal, []byte("git did not finish; look at what is there and push again\n"))
		}
		b = append(b, flushPacket...)
	}
	_, err := r.out.Write(b)
	return err
}

// refuse gives the client a verdict that no ref moved, in git's stead.
func (r *report) refuse(p *pushRequest, reasons map[tidelock.RefName]string) error {
	b := appendPacket(nil, "unpack ok\n")
	for _, c := range p.commands {
		reason, ok := reasons[c.Ref]
		if !ok {
			reason = "another ref of the push was refused"
		} else if err := r.say("Tidelock: " + string(c.Ref) + ": " + reason); err != nil {
			return err
		}
		b = appendPacket(b, "ng ", string(c.Ref), " ", reason, "\n")
	}
	b = append(b, flushPacket...)
	if r.sideBand {
		b = appendBand(nil, bandReport, b)
	}
	r.held = b
	return r.finish()
}
