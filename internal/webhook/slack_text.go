package webhook

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

const (
	maxSlackList  = 20   // syncs that one message names
	maxSlackName  = 120  // characters of a title or another name
	maxSlackError = 1200 // of an error that stands alone
	maxErrorLines = 8
	maxSlackText  = 8 << 10 // bytes of a text that are looked at
)

// failed is the message of what failed; "" for nothing.
func (l links) failed(n forge.SyncNews, m forge.SyncMessage) string {
	switch len(m.Failed) {
	case 0:
		return ""
	case 1:
		s := m.Failed[0]
		return fmt.Sprintf("*Sync failed:* %s in %s\n%s\n%s", whereOf(s), l.slackProject(n), l.slackCommit(n), codeBlock(reasonOf(s)))
	}
	return fmt.Sprintf("*Sync failed* in %d places of %s\n%s", len(m.Failed), l.slackProject(n), l.slackCommit(n)) +
		slackList(m.Failed, func(s forge.Sync) string { return whereOf(s) + ": " + code(firstLine(reasonOf(s))) })
}

// recovered is the message of what failed before and does no more; "" for
// nothing.
func (l links) recovered(n forge.SyncNews, m forge.SyncMessage) string {
	switch len(m.Recovered) {
	case 0:
		return ""
	case 1:
		s := m.Recovered[0]
		return fmt.Sprintf("*Sync recovered* after %s: %s in %s\n%s", spanOf(s.Failed), whereOf(s), l.slackProject(n), l.slackCommit(n))
	}
	return fmt.Sprintf("*Sync recovered* in %d places of %s\n%s", len(m.Recovered), l.slackProject(n), l.slackCommit(n)) +
		slackList(m.Recovered, func(s forge.Sync) string { return whereOf(s) + " after " + spanOf(s.Failed) })
}

// slackList has a line for each sync, but not for all of very many.
func slackList(syncs []forge.Sync, line func(forge.Sync) string) string {
	var b strings.Builder
	for _, s := range syncs[:min(len(syncs), maxSlackList)] {
		b.WriteString("\n• " + line(s))
	}
	if more := len(syncs) - maxSlackList; more > 0 {
		fmt.Fprintf(&b, "\n• and %d more", more)
	}
	return b.String()
}

// whereOf says which object of which cluster, and its environment.
func whereOf(s forge.Sync) string {
	where := code(string(s.Applier)) + " on " + code(s.AgentName)
	if s.Environment != "" {
		where += ", environment " + code(s.Environment)
	}
	return where
}

func reasonOf(s forge.Sync) string {
	switch {
	case s.Message == "":
		return s.Reason
	case s.Reason == "":
		return s.Message
	}
	return s.Reason + ": " + s.Message
}

func (l links) slackProject(n forge.SyncNews) string {
	return slackLink(l.web(n.Project.FullPath), n.Project.FullPath)
}

// slackCommit is a line: the commit with a link to its timeline, its title and
// its author.
func (l links) slackCommit(n forge.SyncNews) string {
	line := slackLink(l.commitURL(n.Project, n.ID)+"/timeline", string(n.ID[:min(8, len(n.ID))]))
	if n.Commit.ID == "" {
		return line
	}
	line += " " + code(n.Commit.Title)
	if n.Commit.Author.Name != "" {
		line += " by " + code(n.Commit.Author.Name)
	}
	return line
}

// spanOf is how long something took, to two units.
func spanOf(d time.Duration) string {
	switch {
	case d < time.Second:
		return "less than a second"
	case d < time.Hour:
		return d.Truncate(time.Second).String()
	case d < 24*time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// slackEscaper hides the three characters that are markup to Slack wherever
// they stand.
var slackEscaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// slackLink is a link to a URL of our own. Its label cannot end it.
func slackLink(url, label string) string {
	return "<" + strings.NewReplacer("|", "%7C", "<", "%3C", ">", "%3E", "&", "&amp;").Replace(url) + "|" +
		slackEscaper.Replace(strings.ReplaceAll(inert(label), "|", "¦")) + ">"
}

// code shows what others wrote, on one line, as it is: within code nothing is
// markup, and nobody is called.
func code(text string) string {
	text = strings.Join(strings.Fields(inert(text)), " ")
	if text == "" {
		text = "-"
	}
	return "`" + slackEscaper.Replace(cutRunes(text, maxSlackName)) + "`"
}

// codeBlock shows the first lines of what others wrote.
func codeBlock(text string) string {
	lines := strings.Split(strings.TrimSpace(inert(text)), "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.TrimSpace(line) == "" })
	if len(lines) > maxErrorLines {
		lines = append(lines[:maxErrorLines], "…")
	}
	text = cutRunes(strings.Join(lines, "\n"), maxSlackError)
	if text == "" {
		text = "no reason was given"
	}
	return "```\n" + slackEscaper.Replace(text) + "\n```"
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}

func cutRunes(text string, most int) string {
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	return string([]rune(text)[:most-1]) + "…"
}

// everybody is how chats other than Slack's call all people at once.
var everybody = regexp.MustCompile(`(?i)@(channel|here|all|everyone|group)\b`)

// inert is text of others without what ends code or calls people. Line breaks
// stay.
func inert(text string) string {
	text = strings.ReplaceAll(tidelock.Printable(text, maxSlackText), "`", "'")
	return everybody.ReplaceAllString(text, "@\u200b$1")
}
