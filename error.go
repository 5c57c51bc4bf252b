package tidelock

import (
	"errors"
	"fmt"
)

// A Kind says what sort of trouble an error is, so that each surface can
// answer in its own words. Anything not classified is Internal.
type Kind int

const (
	Internal        Kind = iota // our fault; the text goes to the log only
	Invalid                     // the request breaks a rule
	Unauthenticated             // no credential, or a bad one
	Denied                      // known, but not allowed
	NotFound                    // missing, or invisible to the caller
	Conflict                    // clashes with what exists
	TooLarge                    // over a limit
	Unavailable                 // try again later
)

func (k Kind) String() string {
	switch k {
	case Invalid:
		return "invalid"
	case Unauthenticated:
		return "unauthenticated"
	case Denied:
		return "denied"
	case NotFound:
		return "not found"
	case Conflict:
		return "conflict"
	case TooLarge:
		return "too large"
	case Unavailable:
		return "unavailable"
	}
	return "internal"
}

// An Error is one that a user may see: Message says which rule was broken and
// what to do. Field, when set, names the attribute of the request at fault, as
// GitLab's API spells it.
type Error struct {
	Kind    Kind
	Field   string
	Message string
}

func (e *Error) Error() string {
	if e.Field != "" {
		return e.Field + " " + e.Message
	}
	return e.Message
}

// Errorf makes an error of a kind whose text may be shown to users.
func Errorf(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// FieldErrorf makes an error about one attribute of a request; its text reads
// on from the attribute's name, as in "has already been taken".
func FieldErrorf(kind Kind, field, format string, args ...any) error {
	return &Error{Kind: kind, Field: field, Message: fmt.Sprintf(format, args...)}
}

// KindOf reports the Kind of err; anything we did not classify is Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}
