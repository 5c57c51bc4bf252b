package gitserver

import (
	"bufio"
	"bytes"
	"io"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

const (
	one = "1111111111111111111111111111111111111111"
	two = "2222222222222222222222222222222222222222"
)

func packets(lines ...string) []byte {
	var b []byte
	for _, l := range lines {
		if l == flushPacket {
			b = append(b, flushPacket...)
			continue
		}
		b = appendPacket(b, l)
	}
	return b
}

func TestReadPush(t *testing.T) {
	request := packets(
		"shallow "+one+"\n",
		zeroObject+" "+one+" refs/heads/new\x00 report-status-v2 side-band-64k push-options atomic object-format=sha1 agent=git/2.39.5 session-id=x\n",
		one+" "+two+" refs/heads/main",
		two+" "+zeroObject+" refs/tags/ünï\n",
		flushPacket, "ci.skip", "a=b c\n", flushPacket)
	in := bufio.NewReader(strings.NewReader(string(request) + "PACK…"))
	got, err := readPush(in)
	if err != nil {
		t.Fatal(err)
	}
	want := &pushRequest{
		commands: []forge.RefCommand{
			{Ref: "refs/heads/new", New: one},
			{Ref: "refs/heads/main", Old: one, New: two},
			{Ref: "refs/tags/ünï", Old: two},
		},
		shallow:      []string{one},
		options:      []string{"ci.skip", "a=b c"},
		capabilities: []string{"report-status-v2", "side-band-64k", "push-options", "atomic"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("readPush = %+v, want %+v", got, want)
	}
	if rest, _ := io.ReadAll(in); string(rest) != "PACK…" {
		t.Errorf("the pack begins with %q", rest)
	}
	wantEncoded := packets(
		"shallow "+one+"\n",
		zeroObject+" "+one+" refs/heads/new\x00 report-status-v2 side-band-64k push-options atomic object-format=sha1",
		one+" "+two+" refs/heads/main",
		two+" "+zeroObject+" refs/tags/ünï",
		flushPacket, "ci.skip", "a=b c", flushPacket)
	if encoded := got.encode(); !bytes.Equal(encoded, wantEncoded) {
		t.Errorf("encode = %q, want %q", encoded, wantEncoded)
	}
}

// FuzzReadPush: whatever a client sends, what git is told afterwards means the
// same to us, and holds only what was looked at.
func FuzzReadPush(f *testing.F) {
	command := zeroObject + " " + one + " refs/heads/main"
	for _, seed := range [][]byte{
		nil,
		[]byte(flushPacket),
		packets(command, flushPacket),
		append(packets(command+"\x00 report-status side-band-64k agent=git/2", one+" "+zeroObject+" refs/tags/v1\n", flushPacket), "PACK\x00\x00\x00\x02"...),
		packets("shallow "+one, command+"\x00push-options", flushPacket, "option", flushPacket),
		packets("push-cert\x00", flushPacket),
		packets(command, command, flushPacket),
		packets(command+"\x00", command+"\x00 atomic", flushPacket),
		[]byte("0001"), []byte("0003"), []byte("0004"), []byte("ffff"), []byte("zzzz"), []byte("00"),
		packets(command + "\n\n"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		in := bufio.NewReader(bytes.NewReader(request))
		p, err := readPush(in)
		if err != nil {
			if kind := tidelock.KindOf(err); kind != tidelock.Invalid && kind != tidelock.TooLarge {
				t.Fatalf("readPush(%q): %v of kind %v", request, err, kind)
			}
			return
		}
		if len(p.commands) == 0 {
			return
		}
		seen := map[tidelock.RefName]bool{}
		for _, c := range p.commands {
			if seen[c.Ref] || strings.ContainsFunc(string(c.Ref), unicode.IsControl) || c.Old == c.New && c.Old == "" {
				t.Fatalf("readPush(%q) took %+v", request, c)
			}
			seen[c.Ref] = true
		}
		encoded := p.encode()
		again := bufio.NewReader(bytes.NewReader(encoded))
		q, err := readPush(again)
		if err != nil {
			t.Fatalf("readPush(%q) wrote %q, which is: %v", request, encoded, err)
		}
		if !reflect.DeepEqual(p, q) {
			t.Fatalf("readPush(%q) = %+v, which it writes as %+v", request, p, q)
		}
		if _, err := again.Peek(1); err != io.EOF {
			t.Fatalf("after %q there is more", encoded)
		}
	})
}

// FuzzPacket holds the lengths of packets to what git takes for one.
func FuzzPacket(f *testing.F) {
	for _, seed := range []string{"0000", "0004", "0005x", "0009hello", "fff0", "+005", "0_05", "0x05", "00A0"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &packetReader{in: bufio.NewReader(bytes.NewReader(data))}
		consumed := 0
		for {
			line, flush, err := r.next()
			if err != nil {
				if err != io.EOF && tidelock.KindOf(err) != tidelock.Invalid {
					t.Fatalf("next of %q: %v", data, err)
				}
				return
			}
			again := []byte(flushPacket)
			if !flush {
				again = appendPacket(nil, string(line))
			}
			if consumed+len(again) > len(data) || !bytes.EqualFold(again[:packetHeader], data[consumed:consumed+packetHeader]) ||
				!bytes.Equal(again[packetHeader:], data[consumed+packetHeader:consumed+len(again)]) {
				t.Fatalf("%q was read as %q", data[consumed:], again)
			}
			consumed += len(again)
		}
	})
}

// FuzzReport: however git's answer is cut into writes, the client gets all
// progress first and the verdict last, and nothing is lost.
func FuzzReport(f *testing.F) {
	f.Add([]byte("progress"), []byte("unpack ok"), 3)
	f.Add([]byte{}, bytes.Repeat([]byte("x"), 70000), 1000)
	f.Add(bytes.Repeat([]byte("p"), 70000), []byte{}, 1)
	f.Fuzz(func(t *testing.T, progress, verdict []byte, cut int) {
		var git []byte
		git = appendBand(git, bandReport, verdict)
		git = appendPacket(git, "\x01") // keeps the connection alive
		git = appendBand(git, bandProgress, progress)
		git = append(git, flushPacket...)
		var client bytes.Buffer
		r := &report{out: &client, sideBand: true}
		cut = max(1, min(cut, len(git)))
		for part := git; len(part) > 0; {
			n := min(cut, len(part))
			if _, err := r.Write(part[:n]); err != nil {
				t.Fatal(err)
			}
			part = part[n:]
		}
		if err := r.finish(); err != nil {
			t.Fatal(err)
		}
		want := appendBand(appendPacket(nil, "\x01"), bandProgress, progress)
		want = appendBand(want, bandReport, verdict)
		if len(verdict) == 0 {
			want = appendBand(want, bandFatal, []byte("git did not finish; look at what is there and push again\n"))
		}
		want = append(want, flushPacket...)
		if !bytes.Equal(client.Bytes(), want) {
			t.Fatalf("the client got %.200q, want %.200q", client.Bytes(), want)
		}
	})
}

func TestReportIsBounded(t *testing.T) {
	for _, sideBand := range []bool{true, false} {
		r := &report{out: io.Discard, sideBand: sideBand}
		line := bytes.Repeat([]byte("x"), 60000)
		packet := line
		if sideBand {
			packet = appendBand(nil, bandReport, line)
		}
		var err error
		for range maxReport/len(line) + 2 {
			if _, err = r.Write(packet); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("side band %t: an endless report is kept", sideBand)
		}
	}
}
