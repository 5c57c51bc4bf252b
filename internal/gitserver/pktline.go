package gitserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"

	"tidelock.dev"
)

// Git frames what it says in pkt-lines: four hexadecimal digits of length,
// themselves included, then the data. Lengths below four are marks without
// data, of which flush is the one that matters here.

const (
	maxPacket     = 65520 // with its four digits
	packetHeader  = 4
	flushPacket   = "0000"
	maxPacketData = maxPacket - packetHeader
)

// The channels of side-band-64k.
const (
	bandReport   = 1
	bandProgress = 2
	bandFatal    = 3
)

// A packetReader reads pkt-lines from a stream that may go on with something
// else, such as a pack.
type packetReader struct {
	in  *bufio.Reader
	buf [maxPacketData]byte
}

// next returns the data of the next pkt-line, valid until the call after, or
// flush. The end of the stream between two packets is io.EOF.
func (r *packetReader) next() (data []byte, flush bool, err error) {
	var header [packetHeader]byte
	if _, err := io.ReadFull(r.in, header[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, false, errBadPacket("the request ends within a pkt-line")
		}
		return nil, false, err
	}
	size, err := packetSize(header[:])
	if err != nil {
		return nil, false, err
	}
	if size == 0 {
		return nil, true, nil
	}
	data = r.buf[:size-packetHeader]
	if _, err := io.ReadFull(r.in, data); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, false, errBadPacket("the request ends within a pkt-line")
		}
		return nil, false, err
	}
	return data, false, nil
}

// packetSize reads the length of a packet from its header; 0 is flush.
func packetSize(header []byte) (int, error) {
	// ParseUint alone would accept "+" and "_".
	for _, c := range header {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return 0, errBadPacket(fmt.Sprintf("pkt-line length %q", header))
		}
	}
	size, err := strconv.ParseUint(string(header), 16, 16)
	if err != nil || size > maxPacket || size > 0 && size < packetHeader {
		return 0, errBadPacket(fmt.Sprintf("pkt-line length %q", header))
	}
	return int(size), nil
}

func errBadPacket(what string) error {
	return tidelock.Errorf(tidelock.Invalid, "the request is not in git's protocol: %s", what)
}

// appendPacket appends a pkt-line that holds the parts one after the other.
func appendPacket(b []byte, parts ...string) []byte {
	size := packetHeader
	for _, p := range parts {
		size += len(p)
	}
	b = fmt.Appendf(b, "%04x", size)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// appendBand appends data on a channel of side-band-64k.
func appendBand(b []byte, band byte, data []byte) []byte {
	const most = maxPacketData - 1
	for len(data) > 0 {
		part := data[:min(len(data), most)]
		b = appendPacket(b, string(band), string(part))
		data = data[len(part):]
	}
	return b
}
