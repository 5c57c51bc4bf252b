package store

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// bind turns arguments into what both drivers take: times into microseconds,
// named types into plain ones. PostgreSQL refuses text that is not UTF-8 or
// holds a zero byte; both engines see such text repaired, so that they agree.
func bind(args []any) []any {
	for i, arg := range args {
		switch a := arg.(type) {
		case nil, []byte, bool, int, int64:
		case time.Time:
			args[i] = micros(a)
		case string:
			args[i] = clean(a)
		default:
			switch v := reflect.ValueOf(a); v.Kind() {
			case reflect.String:
				args[i] = clean(v.String())
			case reflect.Int, reflect.Int64:
				args[i] = v.Int()
			}
		}
	}
	return args
}

func clean(s string) string {
	const replacement = "\uFFFD"
	return strings.ReplaceAll(strings.ToValidUTF8(s, replacement), "\x00", replacement)
}

// fold makes the form by which names and paths are compared.
func fold(s string) string { return strings.ToLower(clean(s)) }

// orNull is for references, whose columns hold no zero.
func orNull[ID ~int64](id ID) any {
	if id == 0 {
		return nil
	}
	return int64(id)
}

// idList is the argument of dialect.in.
func idList[ID ~int64](ids []ID) string {
	if ids == nil {
		ids = []ID{}
	}
	text, err := json.Marshal(ids)
	if err != nil {
		panic(err) // integers have no way to fail
	}
	return string(text)
}

// micros is a time as it is stored: microseconds since 1970, 0 for the zero
// time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// orNow fills in a time that the caller left to the store, and rounds to
// what is kept, so that what a method returns is what it stored.
func orNow(t time.Time) time.Time {
	if t.IsZero() {
		t = time.Now()
	}
	return kept(t)
}

func kept(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Microsecond)
}

// An instant reads what micros wrote.
type instant time.Time

func (t *instant) Scan(value any) error {
	n, ok := value.(int64)
	if !ok {
		return fmt.Errorf("read time: have a %T", value)
	}
	*t = instant{}
	if n != 0 {
		*t = instant(time.UnixMicro(n).UTC())
	}
	return nil
}
