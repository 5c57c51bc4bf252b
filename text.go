package tidelock

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable makes a stranger's text fit to be stored and shown: at most limit
// bytes of valid UTF-8, without terminal escapes, control characters other than
// line breaks and tabs, and marks that turn the direction of writing. What was
// cut off is replaced by "…". Markup stays: whoever shows the text escapes it.
func Printable(text string, limit int) string {
	var b strings.Builder
	b.Grow(min(len(text), limit+utf8.UTFMax))
	for len(text) > 0 && b.Len() <= limit {
		if n := escapeLen(text); n > 0 {
			text = text[n:]
			continue
		}
		r, size := utf8.DecodeRuneInString(text)
		if isShown(r, size) {
			b.WriteString(text[:size])
		}
		text = text[size:]
	}
	if b.Len() <= limit {
		return b.String()
	}
	const more = "…"
	kept := b.String()
	end := max(limit-len(more), 0)
	for end > 0 && !utf8.RuneStart(kept[end]) {
		end--
	}
	return kept[:end] + more
}

// isShown reports whether a rune of a number of bytes may stand in a text.
func isShown(r rune, size int) bool {
	switch {
	case r == '\n' || r == '\t':
		return true
	case r == utf8.RuneError && size == 1: // not UTF-8
		return false
	}
	return !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r) && !unicode.Is(unicode.Noncharacter_Code_Point, r) &&
		r != '\u2028' && r != '\u2029' && r != '\ufeff'
}

// escapeLen is the length of the terminal escape that a text begins with; 0
// for none.
func escapeLen(text string) int {
	if text[0] != '\x1b' || len(text) < 2 {
		return 0
	}
	switch text[1] {
	case '[': // up to the final byte
		for i := 2; i < len(text); i++ {
			if text[i] >= 0x40 && text[i] <= 0x7e {
				return i + 1
			}
			if text[i] < 0x20 {
				return i // broken off
			}
		}
		return len(text)
	case ']', 'P', '_', '^', 'X': // a string, up to BEL or ESC \
		for i := 2; i < len(text); i++ {
			switch {
			case text[i] == '\a':
				return i + 1
			case text[i] == '\x1b' && i+1 < len(text) && text[i+1] == '\\':
				return i + 2
			case text[i] == '\n':
				return i // never more than the line
			}
		}
		return len(text)
	}
	return 1
}

// userInfo is what stands in a URL before its host.
var userInfo = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*)://([^\s/?#'"<>]+)@`)

// WithoutPasswords hides user names and passwords in the URLs of a text: Flux
// names the URL of a source in its errors as somebody wrote it. The user name
// alone is no secret with ssh; with https it is where tokens stand.
func WithoutPasswords(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	return userInfo.ReplaceAllStringFunc(text, func(found string) string {
		scheme, user, _ := strings.Cut(found, "://")
		if scheme == "ssh" && !strings.Contains(user, ":") {
			return found
		}
		return scheme + "://xxxxx@"
	})
}
