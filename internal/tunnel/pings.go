package tunnel

import (
	"encoding/binary"
	"errors"
	"time"
)

const (
	muxHeaderSize = 12
	muxTypeData   = 0
	muxTypePing   = 2
	muxFlagSYN    = 1 // of a ping: a question

	// A peer pings once per heartbeat; tests do so more often.
	maxPings    = 1000
	pingsWithin = 10 * time.Second
)

var errPingFlood = errors.New("the peer floods us with pings")

// A pingGuard follows the frames that arrive and counts pings. yamux starts a
// goroutine for each, which waits until the answer can be written: a peer that
// pings and does not read would have us start any number of them.
type pingGuard struct {
	header [muxHeaderSize]byte
	have   int    // bytes of header
	body   uint32 // bytes of the current frame's body still to come
	pings  int
	since  time.Time
}

func (g *pingGuard) follow(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			n := min(uint64(g.body), uint64(len(p)))
			g.body -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(g.header[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < muxHeaderSize {
			return nil
		}
		g.have = 0
		switch g.header[1] {
		case muxTypeData:
			g.body = binary.BigEndian.Uint32(g.header[8:])
		case muxTypePing:
			if binary.BigEndian.Uint16(g.header[2:])&muxFlagSYN == 0 {
				continue // an answer
			}
			if now := time.Now(); now.Sub(g.since) > pingsWithin {
				g.since, g.pings = now, 0
			}
			if g.pings++; g.pings > maxPings {
				return errPingFlood
			}
		}
	}
	return nil
}
