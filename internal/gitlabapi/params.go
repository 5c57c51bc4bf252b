package gitlabapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"tidelock.dev"
)

// params are the attributes a request gives in its query and in its body,
// which may be JSON, a form or a multipart form; the body wins. Reading one
// that is malformed gives its zero value and is noted, so that a handler reads
// all it needs and then asks once for err.
type params struct {
	values map[string]any // string, json.Number, bool, []any or map[string]any
	wrong  []string
}

// read fills the params. Only writes may have a body.
func (r *request) read() error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return errBadRequest("the query is malformed")
	}
	if len(query) > maxParams {
		return errTooManyParams
	}
	r.values = map[string]any{}
	r.addForm(query)
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil && r.Header.Get("Content-Type") != "" {
		return errMediaType
	}
	switch {
	case kind == "application/x-www-form-urlencoded":
		text, err := io.ReadAll(r.Body)
		if err != nil {
			return bodyError(err, "the form is malformed")
		}
		form, err := url.ParseQuery(string(text))
		if err != nil {
			return errBadRequest("the form is malformed")
		}
		if len(form) > maxParams {
			return errTooManyParams
		}
		r.addForm(form)
	case kind == "multipart/form-data":
		if err := r.ParseMultipartForm(maxBody); err != nil {
			return bodyError(err, "the multipart form is malformed")
		}
		defer r.MultipartForm.RemoveAll()
		if len(r.MultipartForm.Value) > maxParams {
			return errTooManyParams
		}
		r.addForm(r.MultipartForm.Value)
	case kind == "application/json", strings.HasSuffix(kind, "+json"), kind == "":
		return r.addJSON()
	default:
		return errMediaType
	}
	return nil
}

var errMediaType = &statusError{
	status: http.StatusUnsupportedMediaType,
	body:   errorBody{Error: "The provided content-type is not supported."},
}

func bodyError(err error, message string) error {
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return errTooLarge
	}
	return errBadRequest(message)
}

func (r *request) addJSON() error {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return bodyError(err, "the body cannot be read")
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	switch values, depth := jsonSize(text); {
	case depth > maxDepth:
		return errBadRequest("the body is nested too deeply")
	case values > maxValues:
		return errBadRequest("the body has too many values")
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var body map[string]any
	if err := decoder.Decode(&body); err != nil {
		return errBadRequest("the body is not a JSON object")
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errBadRequest("the body has more than one JSON value")
	}
	if len(body) > maxParams {
		return errTooManyParams
	}
	for name, value := range body {
		if value == nil {
			delete(r.values, name) // null says that nothing is said
			continue
		}
		r.values[name] = value
	}
	return nil
}

const (
	maxParams = 1000 // of one request
	maxDepth  = 32   // of JSON; what is read has four levels at most

	// maxValues bounds what is made of JSON: one value takes up to a hundred
	// times its text. The largest commit has half as many.
	maxValues = 200_000
)

var errTooManyParams = errBadRequest("there are too many parameters")

// jsonSize counts the values of a JSON text, and how deeply it is nested,
// before anything is made of it. Values are counted by the commas and brackets
// around them, which is within a factor of two.
func jsonSize(text []byte) (values, deepest int) {
	depth := 0
	quoted, escaped := false, false
	for _, c := range text {
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == ',':
			values++
		case c == '{' || c == '[':
			values++
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return values, deepest
}

// addForm takes "name=a" as a text, the last one winning, and "name[]=a" as
// an element of a list.
func (p *params) addForm(form url.Values) {
	for name, values := range form {
		if list, ok := strings.CutSuffix(name, "[]"); ok {
			elements := make([]any, len(values))
			for i, v := range values {
				elements[i] = v
			}
			p.values[list] = elements
		} else if len(values) > 0 {
			p.values[name] = values[len(values)-1]
		}
	}
}

// err is what was wrong with the params read so far.
func (p *params) err() error {
	if len(p.wrong) == 0 {
		return nil
	}
	return &paramError{p.wrong}
}

func (p *params) note(name, text string) {
	if note := name + " " + text; !slices.Contains(p.wrong, note) {
		p.wrong = append(p.wrong, note)
	}
}

// need notes those of the names that were not given.
func (p *params) need(names ...string) {
	for _, name := range names {
		if !p.has(name) {
			p.note(name, "is missing")
		}
	}
}

func (p *params) needOneOf(names ...string) {
	if !slices.ContainsFunc(names, p.has) {
		p.note(strings.Join(names, ", "), "are missing, at least one parameter must be provided")
	}
}

func (p *params) has(name string) bool {
	_, ok := p.values[name]
	return ok
}

// text reads a text; numbers and booleans are taken as they were written.
func (p *params) text(name string) string {
	text, ok := plain(p.values[name])
	if !ok || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		p.note(name, "is invalid")
		return ""
	}
	return text
}

func plain(v any) (string, bool) {
	switch v := v.(type) {
	case nil:
		return "", true
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}

// given reads a param that may be absent, by one of the other methods: nil
// when it is.
func given[T any](p *params, name string, read func(string) T) *T {
	if !p.has(name) {
		return nil
	}
	v := read(name)
	return &v
}

// number reads an integer; absent and empty are 0.
func (p *params) number(name string) int64 {
	text := p.text(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		p.note(name, "is invalid")
		return 0
	}
	return n
}

// flag reads a boolean; absent and empty are false.
func (p *params) flag(name string) bool {
	switch strings.ToLower(p.text(name)) {
	case "true", "t", "1", "yes", "on":
		return true
	case "false", "f", "0", "no", "off", "":
		return false
	}
	p.note(name, "is invalid")
	return false
}

// word reads one of a set of words; absent is the first.
func (p *params) word(name string, words ...string) string {
	text := p.text(name)
	if text == "" {
		return words[0]
	}
	if !slices.Contains(words, text) {
		p.note(name, "does not have a valid value")
		return words[0]
	}
	return text
}

// oneOf reads one of a set of words that has to be given.
func (p *params) oneOf(name string, words ...string) string {
	p.need(name)
	if p.has(name) && !slices.Contains(words, p.text(name)) {
		p.note(name, "does not have a valid value")
	}
	return p.text(name)
}

// list reads a list of texts; a text is cut at its commas.
func (p *params) list(name string) []string {
	elements, ok := p.values[name].([]any)
	if !ok {
		text := p.text(name)
		if text == "" {
			return nil
		}
		return strings.Split(text, ",")
	}
	list := make([]string, 0, len(elements))
	for _, e := range elements {
		text, ok := e.(string)
		if !ok || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			p.note(name, "is invalid")
			return nil
		}
		list = append(list, text)
	}
	return list
}

// when reads a date or a time; absent and empty are zero.
func (p *params) when(name string) time.Time {
	text := p.text(name)
	if text == "" {
		return time.Time{}
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339Nano, "2006-01-02T15:04:05", time.DateTime} {
		if t, err := time.Parse(layout, text); err == nil && t.Year() > 0 && t.Year() < 10000 {
			return t.UTC()
		}
	}
	p.note(name, "is invalid")
	return time.Time{}
}

// date reads a date; of a time, its day in UTC.
func (p *params) date(name string) time.Time { return p.when(name).Truncate(24 * time.Hour) }

// level reads an access level; which of them will do, the forge says.
func (p *params) level(name string) tidelock.AccessLevel {
	n := p.number(name)
	if n < 0 || n > 100 { // no level at all, and more than databases hold
		p.note(name, "does not have a valid value")
		return tidelock.NoAccess
	}
	return tidelock.AccessLevel(n)
}

func (p *params) visibility(name string) tidelock.Visibility {
	v, err := tidelock.ParseVisibility(p.word(name, "private", "internal", "public"))
	if err != nil { // word has let only these through
		panic(fmt.Sprintf("visibility: %v", err))
	}
	return v
}

func (p *params) scopes(name string) []tidelock.Scope {
	words := p.list(name)
	scopes := make([]tidelock.Scope, len(words))
	for i, w := range words {
		scopes[i] = tidelock.Scope(strings.TrimSpace(w))
	}
	return scopes
}
