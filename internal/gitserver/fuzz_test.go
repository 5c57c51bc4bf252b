package gitserver

import (
	"bufio"
	"bytes"
	"strings"
	"testing"

	"tidelock.dev"
)

// quote writes a word as git does for a shell.
func quote(s string) string {
	return "'" + strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(s) + "'"
}

// Whatever is accepted names one of two services and a plain path, and reads
// the same when it is quoted as git would.
func FuzzSSHCommand(f *testing.F) {
	for _, seed := range []string{
		"git-upload-pack 'people/site.git'", "git-receive-pack '/people/site'", "git upload-pack people/site", "git  receive-pack 'a/b'",
		`git-upload-pack 'it'\''s/x'`, `git-upload-pack 'wow'\!'/x'`, "git-upload-pack '--help'", "git-upload-pack ''", "git-lfs-authenticate a/b download",
		"git-upload-pack 'a/b", "git-upload-pack 'a/b'; id", "git-upload-pack \x00", "git", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCommand(text)
		if err != nil {
			if tidelock.KindOf(err) != tidelock.Invalid {
				t.Fatalf("%q: an error of kind %v: %v", text, tidelock.KindOf(err), err)
			}
			return
		}
		if c.service != uploadPack && c.service != receivePack {
			t.Fatalf("%q asks for %q", text, c.service)
		}
		if c.project == "" {
			return // no project is called so
		}
		for segment := range strings.SplitSeq(c.project, "/") {
			if !isSegment(segment) {
				t.Fatalf("%q names the project %q", text, c.project)
			}
		}
		if strings.ContainsAny(c.project, "'\"\\ \t\n\x00;&|$`%") {
			t.Fatalf("%q names the project %q", text, c.project)
		}
		again, err := parseCommand(string(c.service) + " " + quote(c.project+".git"))
		if err != nil || again != c {
			t.Fatalf("%q reads as %+v, and that, quoted, as %+v, %v", text, c, again, err)
		}
	})
}

// Quoting and reading are each other's inverse, for every word there is.
func FuzzSSHQuoting(f *testing.F) {
	for _, seed := range []string{"", "a/b", "it's", "!", `\`, "'", "a b\n", "\x00\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, word string) {
		if got, err := unquote(quote(word)); err != nil || got != word {
			t.Fatalf("%q is read as %q, %v", word, got, err)
		}
	})
}

// Reading never goes beyond the bytes of a packet, and what was read is what
// was framed.
func FuzzPktLine(f *testing.F) {
	for _, seed := range []string{"", "0000", "0004", "0005a", "0006a\n0000", "ffff", "fff0", "+001", "0_01", "000", "0003", "FFF0" + strings.Repeat("x", 65516)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := &packetReader{in: bufio.NewReader(bytes.NewReader(stream))}
		var framed []byte
		for {
			data, flush, err := in.next()
			if err != nil {
				break
			}
			if flush {
				framed = append(framed, flushPacket...)
			} else {
				framed = appendPacket(framed, string(data))
			}
			if len(framed) > len(stream) || !strings.EqualFold(string(framed), string(stream[:len(framed)])) {
				t.Fatalf("%q was read as %q", stream, framed)
			}
		}
	})
}

// What is decided upon is what git is told: a push that is accepted reads the
// same when it is written anew.
func FuzzRefCommands(f *testing.F) {
	id := strings.Repeat("1", 40)
	line := func(s string) string { return string(appendPacket(nil, s)) }
	for _, seed := range []string{
		"0000",
		line(zeroObject+" "+id+" refs/heads/main\x00 report-status side-band-64k") + "0000",
		line(id+" "+zeroObject+" refs/heads/a\x00delete-refs object-format=sha1") + line(id+" "+id+" refs/tags/b\n") + "0000",
		line("shallow "+id) + line(zeroObject+" "+id+" refs/heads/x\x00push-options") + "0000" + line("ci.skip") + "0000",
		line("push-cert\x00") + "0000", line("x"), "0000PACK",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		p, err := readPush(bufio.NewReader(bytes.NewReader(stream)))
		if err != nil {
			if kind := tidelock.KindOf(err); kind != tidelock.Invalid && kind != tidelock.TooLarge {
				t.Fatalf("%q: an error of kind %v: %v", stream, kind, err)
			}
			return
		}
		if len(p.commands) == 0 {
			return
		}
		again, err := readPush(bufio.NewReader(bytes.NewReader(p.encode())))
		if err != nil {
			t.Fatalf("%q is not read again: %v", p.encode(), err)
		}
		if got, want := string(again.encode()), string(p.encode()); got != want {
			t.Fatalf("%q is told git as %q, which reads as %q", stream, want, got)
		}
	})
}
