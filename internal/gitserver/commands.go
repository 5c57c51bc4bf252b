package gitserver

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// What one push may hold besides its pack.
const (
	maxCommands    = 10_000
	maxRefBytes    = 8 << 20 // of the names of all refs together
	maxShallow     = 10_000
	maxOptions     = 100
	maxOptionBytes = 4 << 10
)

const zeroObject = "0000000000000000000000000000000000000000"

// A pushRequest is what a client asks of git-receive-pack, without the pack.
type pushRequest struct {
	commands     []forge.RefCommand
	shallow      []string // commits whose parents the client does not have
	options      []string
	capabilities []string // those of passedOn that the client chose
}

// passedOn are the capabilities that a client may choose. Others are either
// about what the client is, or not offered.
var passedOn = []string{"report-status", "report-status-v2", "side-band-64k", "delete-refs", "quiet", "atomic", "ofs-delta", "push-options"}

func (p *pushRequest) has(capability string) bool { return slices.Contains(p.capabilities, capability) }

func (p *pushRequest) wantsReport() bool { return p.has("report-status") || p.has("report-status-v2") }

func (p *pushRequest) sideBand() bool { return p.has("side-band-64k") }

// sendsPack reports whether a pack follows the commands.
func (p *pushRequest) sendsPack() bool {
	return slices.ContainsFunc(p.commands, func(c forge.RefCommand) bool { return c.New != "" })
}

func (p *pushRequest) refs() []tidelock.RefName {
	names := make([]tidelock.RefName, len(p.commands))
	for i, c := range p.commands {
		names[i] = c.Ref
	}
	return names
}

// readPush reads the commands of a push and leaves in at the pack. No
// commands at all is a client that only tries whether it may push. An error
// of kind Invalid says that the request is malformed.
func readPush(in *bufio.Reader) (*pushRequest, error) {
	packets := &packetReader{in: in}
	p := &pushRequest{}
	seen := map[tidelock.RefName]bool{}
	refBytes := 0
	for {
		line, flush, err := packets.next()
		if errors.Is(err, io.EOF) && len(p.commands) == 0 && len(p.shallow) == 0 {
			return p, nil
		}
		if errors.Is(err, io.EOF) {
			return nil, errBadPacket("the list of commands has no end")
		}
		if err != nil {
			return nil, err
		}
		if flush {
			break
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		if shallow, ok := bytes.CutPrefix(line, []byte("shallow ")); ok {
			if !isObjectName(shallow) {
				return nil, errBadPacket("a shallow line names no object")
			}
			if len(p.shallow) == maxShallow {
				return nil, tidelock.Errorf(tidelock.TooLarge, "the push names more than %d shallow commits", maxShallow)
			}
			p.shallow = append(p.shallow, string(shallow))
			continue
		}
		if bytes.HasPrefix(line, []byte("push-cert")) {
			return nil, tidelock.Errorf(tidelock.Invalid, "signed pushes are not supported")
		}
		if len(p.commands) == maxCommands {
			return nil, tidelock.Errorf(tidelock.TooLarge, "the push names more than %d refs", maxCommands)
		}
		// Git would take capabilities from any line; only the first has them.
		line, capabilities, found := bytes.Cut(line, []byte{0})
		if found && len(p.commands) > 0 {
			return nil, errBadPacket("capabilities after the first command")
		}
		if err := p.choose(string(capabilities)); err != nil {
			return nil, err
		}
		command, err := parseRefCommand(line)
		if err != nil {
			return nil, err
		}
		if refBytes += len(command.Ref); refBytes > maxRefBytes {
			return nil, tidelock.Errorf(tidelock.TooLarge, "the names of the refs are longer than %d bytes", maxRefBytes)
		}
		if seen[command.Ref] {
			return nil, tidelock.Errorf(tidelock.Invalid, "the push names %s twice", command.Ref)
		}
		seen[command.Ref] = true
		p.commands = append(p.commands, command)
	}
	if len(p.commands) == 0 {
		return p, nil
	}
	if p.has("push-options") {
		return p, p.readOptions(packets)
	}
	return p, nil
}

// choose keeps the capabilities that are passed on to git.
func (p *pushRequest) choose(capabilities string) error {
	for c := range strings.FieldsSeq(capabilities) {
		if format, ok := strings.CutPrefix(c, "object-format="); ok && format != "sha1" {
			return tidelock.Errorf(tidelock.Invalid, "the repository holds sha1 objects, not %.20s", format)
		}
		if slices.Contains(passedOn, c) && !p.has(c) {
			p.capabilities = append(p.capabilities, c)
		}
	}
	return nil
}

// parseRefCommand reads "<old> <new> <ref>". Whether the ref is a good one is
// for the forge to say, to the user; here it must only be printable.
func parseRefCommand(line []byte) (forge.RefCommand, error) {
	const name = len(zeroObject)
	if len(line) < 2*name+3 || line[name] != ' ' || line[2*name+1] != ' ' ||
		!isObjectName(line[:name]) || !isObjectName(line[name+1:2*name+1]) {
		return forge.RefCommand{}, errBadPacket("a command is not <old> <new> <ref>")
	}
	c := forge.RefCommand{
		Old: objectOrNone(line[:name]),
		New: objectOrNone(line[name+1 : 2*name+1]),
		Ref: tidelock.RefName(line[2*name+2:]),
	}
	if !utf8.ValidString(string(c.Ref)) || strings.ContainsFunc(string(c.Ref), unicode.IsControl) {
		return forge.RefCommand{}, tidelock.Errorf(tidelock.Invalid, "ref name %.100q is not valid", c.Ref)
	}
	if c.Old == "" && c.New == "" {
		return forge.RefCommand{}, errBadPacket("a command neither creates, moves nor deletes")
	}
	return c, nil
}

func objectOrNone(b []byte) tidelock.CommitID {
	if string(b) == zeroObject {
		return ""
	}
	return tidelock.CommitID(b)
}

func isObjectName(b []byte) bool {
	if len(b) != len(zeroObject) {
		return false
	}
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func (p *pushRequest) readOptions(packets *packetReader) error {
	for {
		line, flush, err := packets.next()
		if errors.Is(err, io.EOF) {
			return errBadPacket("the list of push options has no end")
		}
		if err != nil {
			return err
		}
		if flush {
			return nil
		}
		option := strings.TrimSuffix(string(line), "\n")
		switch {
		case len(p.options) == maxOptions:
			return tidelock.Errorf(tidelock.TooLarge, "the push has more than %d options", maxOptions)
		case len(option) > maxOptionBytes:
			return tidelock.Errorf(tidelock.TooLarge, "a push option is longer than %d bytes", maxOptionBytes)
		case strings.ContainsAny(option, "\x00\n"):
			return tidelock.Errorf(tidelock.Invalid, "a push option holds a line break")
		}
		p.options = append(p.options, option)
	}
}

// encode writes the request anew for git: what was decided upon is what git
// is told, however else it might have read the client's bytes.
func (p *pushRequest) encode() []byte {
	var b []byte
	for _, s := range p.shallow {
		b = appendPacket(b, "shallow ", s, "\n")
	}
	for i, c := range p.commands {
		capabilities := ""
		if i == 0 {
			capabilities = "\x00 " + strings.Join(append(slices.Clone(p.capabilities), "object-format=sha1"), " ")
		}
		b = appendPacket(b, objectName(c.Old), " ", objectName(c.New), " ", string(c.Ref), capabilities)
	}
	b = append(b, flushPacket...)
	if p.has("push-options") {
		for _, o := range p.options {
			b = appendPacket(b, o)
		}
		b = append(b, flushPacket...)
	}
	return b
}

func objectName(id tidelock.CommitID) string {
	if id == "" {
		return zeroObject
	}
	return string(id)
}
