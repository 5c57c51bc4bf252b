package gitrepo

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"tidelock.dev"
)

// A Move changes a ref: Old is where it is now, empty to create it, and New
// where it goes, empty to delete it.
type Move struct {
	Ref tidelock.RefName
	Old tidelock.CommitID
	New tidelock.CommitID
}

// A MoveRequest is a push made by the forge itself.
type MoveRequest struct {
	Moves []Move
	Draft *Draft // the objects that it brings; nil for none

	// DenyNonFastForward refuses every move that would lose commits.
	DenyNonFastForward bool
}

// Move moves refs as a git push does, through git receive-pack: all of them or
// none, and only those that still are where Old says, which is otherwise an
// error of kind Conflict. New objects are checked before they appear. What
// happened survives power loss once Sync has returned.
//
// An error of another kind than Conflict, Invalid, Denied and TooLarge does
// not say that nothing happened: the refs tell.
func (r *Repo) Move(ctx context.Context, req MoveRequest) error {
	names := make([]tidelock.RefName, len(req.Moves))
	var in []byte
	brings := false
	for i, m := range req.Moves {
		if err := tidelock.ValidRef(m.Ref); err != nil {
			return err
		}
		names[i] = m.Ref
		line := orZero(m.Old) + " " + orZero(m.New) + " " + string(m.Ref)
		if i == 0 {
			line += "\x00 report-status side-band-64k quiet atomic object-format=sha1"
		}
		in = appendPacketLine(in, line)
		brings = brings || m.New != ""
	}
	in = append(in, "0000"...)
	if brings {
		var objects pack
		if req.Draft != nil {
			objects = req.Draft.pack
		}
		in = append(in, objects.encode()...)
	}
	out := limitedBuffer{limit: 1 << 20}
	err := r.ReceivePack(ctx, ReceiveRequest{
		In: bytes.NewReader(in), Out: &out, Refs: names, DenyNonFastForward: req.DenyNonFastForward,
	})
	if err != nil {
		return err
	}
	report, said, err := splitSideBand(out.Bytes())
	if err != nil {
		return fmt.Errorf("read git's report on repository %d: %w", r.id, err)
	}
	return r.verdict(ctx, req, report, said)
}

const zeroName = "0000000000000000000000000000000000000000"

func orZero(id tidelock.CommitID) string {
	if id == "" {
		return zeroName
	}
	return string(id)
}

func appendPacketLine(b []byte, line string) []byte {
	return fmt.Appendf(b, "%04x%s", len(line)+4, line)
}

// splitSideBand takes apart what git reports and what it says to people.
func splitSideBand(b []byte) (report []string, said string, err error) {
	var band1, band2 []byte
	for packet, err := range packets(b) {
		switch {
		case err != nil:
			return nil, "", err
		case len(packet) > 0 && packet[0] == 1:
			band1 = append(band1, packet[1:]...)
		case len(packet) > 0:
			band2 = append(band2, packet[1:]...)
		}
	}
	for packet, err := range packets(band1) {
		if err != nil {
			return nil, "", err
		}
		report = append(report, strings.TrimSuffix(string(packet), "\n"))
	}
	said = strings.TrimSpace(strings.ToValidUTF8(string(band2), "\uFFFD"))
	return report, said[:min(len(said), maxComplaint)], nil
}

// packets cuts pkt-lines, without flushes.
func packets(b []byte) func(func([]byte, error) bool) {
	return func(yield func([]byte, error) bool) {
		for len(b) > 0 {
			if len(b) < 4 {
				yield(nil, fmt.Errorf("%q is no packet", b))
				return
			}
			n, err := strconv.ParseUint(string(b[:4]), 16, 16)
			if err != nil || n != 0 && n < 4 || int(n) > len(b) {
				yield(nil, fmt.Errorf("%q is no length of a packet", b[:4]))
				return
			}
			if n == 0 {
				b = b[4:]
				continue
			}
			if !yield(b[4:n], nil) {
				return
			}
			b = b[n:]
		}
	}
}

// verdict makes an error of git's report, if a ref did not move.
func (r *Repo) verdict(ctx context.Context, req MoveRequest, report []string, said string) error {
	if len(report) == 0 {
		return fmt.Errorf("move refs of repository %d: git reported nothing: %s", r.id, said)
	}
	if unpacked, _ := strings.CutPrefix(report[0], "unpack "); unpacked != "ok" {
		switch {
		case strings.Contains(said, "pack exceeds maximum allowed size"):
			return tidelock.Errorf(tidelock.TooLarge, "the commit is larger than %d bytes", r.disk.maxInput)
		case strings.Contains(said, "fsck error"), strings.Contains(said, "error in object"):
			return tidelock.Errorf(tidelock.Invalid, "git refuses the content: %s", said)
		}
		return fmt.Errorf("move refs of repository %d: git could not unpack: %s: %s", r.id, unpacked, said)
	}
	for _, line := range report[1:] {
		refused, ok := strings.CutPrefix(line, "ng ")
		if !ok {
			continue
		}
		ref, reason, _ := strings.Cut(refused, " ")
		if reason == "non-fast-forward" {
			return tidelock.Errorf(tidelock.Denied, "%s is protected: it cannot lose commits", ref)
		}
		for _, m := range req.Moves {
			now, err := r.ReadRefs(ctx, m.Ref)
			if err == nil && (len(now) == 0) != (m.Old == "") || len(now) > 0 && now[0].Object != m.Old {
				return tidelock.Errorf(tidelock.Conflict, "Could not update %s. Please refresh and try again.", m.Ref)
			}
		}
		return tidelock.Errorf(tidelock.Invalid, "Could not update %s: %s", ref, reason)
	}
	return nil
}
