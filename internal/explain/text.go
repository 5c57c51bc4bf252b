package explain

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"tidelock.dev"
)

// What an answer may hold, so that it fits a screen and a column whatever
// others wrote.
const (
	maxSentence = 500 // bytes
	maxNext     = 500
	maxWhere    = 200
	maxWhat     = 2 << 10
	maxEvidence = 8
	maxAlso     = 10
	maxQuote    = 200 // of a message inside a sentence
	maxRead     = 16 << 10
)

// plain makes a text printable on one line, and at most so many bytes long.
func plain(text string, most int) string {
	if text, ok := ascii(text, most); ok { // which is nearly all
		return text
	}
	if few := 8*most + 64; len(text) > few { // enough is left even if much of it goes
		text = strings.ToValidUTF8(text[:few], "")
	}
	words := strings.Fields(tidelock.Printable(text, 4*most))
	line := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.Join(words, " "))
	return tidelock.Printable(line, most)
}

// ascii is plain for a text that only has to be shortened, if at all.
func ascii(text string, most int) (string, bool) {
	const more = "…"
	shown := text
	if len(text) > most {
		shown = text[:most-len(more)]
	}
	for i := range len(shown) {
		switch c := shown[i]; {
		case c < ' ' || c > '~', c == ' ' && (i == 0 || i == len(shown)-1 || shown[i+1] == ' '):
			return "", false
		}
	}
	if len(shown) < len(text) {
		shown += more
	}
	return shown, true
}

// quote is a message as it stands in a sentence.
func quote(message string) string { return plain(message, maxQuote) }

// bounded keeps an answer within what is promised of it.
func bounded(v tidelock.Verdict) tidelock.Verdict {
	v.Environment, v.AgentName = plain(v.Environment, maxWhere), plain(v.AgentName, maxWhere)
	v.Object = tidelock.ObjectID(plain(string(v.Object), 3*maxWhere))
	v.Sentence, v.Next = plain(v.Sentence, maxSentence), plain(v.Next, maxNext)
	v.Evidence = v.Evidence[:min(len(v.Evidence), maxEvidence)]
	for i, e := range v.Evidence {
		v.Evidence[i].Where, v.Evidence[i].What = plain(e.Where, maxWhere), plain(e.What, maxWhat)
	}
	v.Also = v.Also[:min(len(v.Also), maxAlso)]
	for i, also := range v.Also {
		v.Also[i].Sentence, v.Also[i].Next = plain(also.Sentence, maxSentence), plain(also.Next, maxNext)
		v.Also[i].Object = tidelock.ObjectID(plain(string(also.Object), 3*maxWhere))
		v.Also[i].Evidence, v.Also[i].Also = nil, nil
	}
	return v
}

// withAlso adds verdicts to another's Also, without what they only repeat.
func withAlso(v tidelock.Verdict, others []tidelock.Verdict) tidelock.Verdict {
	type key struct {
		code   tidelock.CauseCode
		object tidelock.ObjectID
		agent  tidelock.AgentID
	}
	seen := map[key]bool{{v.Code, v.Object, v.Agent}: true}
	var also []tidelock.Verdict
	add := func(o tidelock.Verdict) {
		k := key{o.Code, o.Object, o.Agent}
		if seen[k] || len(also) == maxAlso {
			return
		}
		seen[k] = true
		o.Evidence, o.Also = nil, nil
		also = append(also, o)
	}
	for _, o := range v.Also {
		add(o)
	}
	for _, o := range others {
		add(o)
		for _, deeper := range o.Also {
			add(deeper)
		}
	}
	v.Also = also
	return v
}

// conditions is where the word of an object on itself was read.
func conditions(o *tidelock.Observation) tidelock.Evidence {
	what := o.Reason
	if o.Message != "" {
		if what != "" {
			what += ": "
		}
		what += o.Message
	}
	if what == "" {
		what = string(o.State)
	}
	return tidelock.Evidence{Where: string(o.Object) + " status.conditions[Ready]", What: what, At: o.Since}
}

// field is evidence from a field of an object.
func field(o *tidelock.Observation, name, value string) tidelock.Evidence {
	return tidelock.Evidence{Where: string(o.Object) + " " + name, What: value, At: o.UpdatedAt}
}

func short(c tidelock.CommitID) string { return string(c[:min(len(c), 8)]) }

// shortRef is a ref as people write it.
func shortRef(r tidelock.RefName) string {
	if branch, ok := r.Branch(); ok {
		return "branch " + branch
	}
	if tag, ok := r.Tag(); ok {
		return "tag " + tag
	}
	return string(r)
}

// someRefs names refs, but not all of many.
func someRefs(refs []tidelock.RefName) string {
	const shown = 3
	var words []string
	for _, r := range refs[:min(len(refs), shown)] {
		words = append(words, plain(shortRef(r), 80))
	}
	text := strings.Join(words, ", ")
	if more := len(refs) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// took is a span in words.
func took(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// stamp is a moment in words.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// fluxNouns are how the command line of Flux calls kinds.
var fluxNouns = map[tidelock.ObjectKind]string{
	tidelock.Kustomization: "kustomization",
	tidelock.HelmRelease:   "helmrelease",

	tidelock.ObjectKind(tidelock.GitRepository):   "source git",
	tidelock.ObjectKind(tidelock.OCIRepository):   "source oci",
	tidelock.ObjectKind(tidelock.HelmChart):       "source chart",
	tidelock.ObjectKind(tidelock.ImageRepository): "image repository",
}

// flux is the command of Flux's that does something to an object; "" where
// there is none, or where one of the names is not one of Kubernetes, since
// people will paste it.
func flux(verb string, id tidelock.ObjectID) string {
	kind, namespace, name := id.Split()
	noun := fluxNouns[kind]
	if noun == "" || verb == "tree" && kind != tidelock.Kustomization || !isName(namespace) || !isName(name) {
		return ""
	}
	return "flux " + verb + " " + noun + " " + name + " -n " + namespace
}

func isName(s string) bool {
	return s != "" && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}

// run advises a command, if there is one.
func run(advice, command string) string {
	if command == "" {
		return advice
	}
	return advice + ": " + command
}
