package gitlabapi

import (
	"time"

	"tidelock.dev"
)

// A stamp is a time as GitLab writes it: RFC 3339 in UTC to the millisecond,
// and null for none, since an empty text fails in strict clients.
type stamp time.Time

func (t stamp) MarshalJSON() ([]byte, error) {
	return quoteTime(time.Time(t).UTC(), "2006-01-02T15:04:05.000Z")
}

// An exact is a time of our own routes, to the microsecond.
type exact time.Time

func (t exact) MarshalJSON() ([]byte, error) {
	return quoteTime(time.Time(t).UTC(), "2006-01-02T15:04:05.000000Z")
}

// A day is a date, which is how access tokens and memberships expire.
type day time.Time

func (t day) MarshalJSON() ([]byte, error) { return quoteTime(time.Time(t).UTC(), time.DateOnly) }

// A zoned is a time in the zone that a commit was made in. Commits can hold
// any number; a zone that strict clients do not read is written as UTC.
type zoned time.Time

func (t zoned) MarshalJSON() ([]byte, error) {
	local := time.Time(t)
	if _, offset := local.Zone(); offset <= -24*3600 || offset >= 24*3600 {
		local = local.UTC()
	}
	return quoteTime(local, "2006-01-02T15:04:05.000Z07:00")
}

// quoteTime writes null also for a year that RFC 3339 cannot say.
func quoteTime(t time.Time, layout string) ([]byte, error) {
	if year := t.Year(); t.IsZero() || year < 1 || year > 9999 {
		return []byte("null"), nil
	}
	return []byte(`"` + t.Format(layout) + `"`), nil
}

// orNull is nil, which is JSON's null, for the zero value.
func orNull[T comparable](v T) *T {
	if v == *new(T) {
		return nil
	}
	return &v
}

// each shapes every element of a list.
func each[In, Out any](items []In, shape func(In) Out) []Out {
	out := make([]Out, len(items))
	for i, item := range items {
		out[i] = shape(item)
	}
	return out
}

// A userShape is a user among others; userSelf adds what only the user itself
// and administrators see.
type userShape struct {
	ID        tidelock.UserID `json:"id"`
	Username  string          `json:"username"`
	Name      string          `json:"name"`
	State     string          `json:"state"`
	Locked    bool            `json:"locked"`
	AvatarURL *string         `json:"avatar_url"`
	WebURL    string          `json:"web_url"`
}

type userFull struct {
	userShape
	CreatedAt   stamp  `json:"created_at"`
	Bio         string `json:"bio"`
	Bot         bool   `json:"bot"`
	PublicEmail string `json:"public_email"`
}

type userSelf struct {
	userFull
	Email            string               `json:"email"`
	CommitEmail      string               `json:"commit_email"`
	IsAdmin          bool                 `json:"is_admin"`
	NamespaceID      tidelock.NamespaceID `json:"namespace_id"`
	CanCreateGroup   bool                 `json:"can_create_group"`
	CanCreateProject bool                 `json:"can_create_project"`
	External         bool                 `json:"external"`
	TwoFactorEnabled bool                 `json:"two_factor_enabled"`
	Identities       []struct{}           `json:"identities"`
}

func (a *API) userShape(u tidelock.User) userShape {
	state := "active"
	if u.Blocked {
		state = "blocked"
	}
	return userShape{ID: u.ID, Username: u.Username, Name: u.Name, State: state, WebURL: a.webURL(u.Username)}
}

func (a *API) userFull(u tidelock.User) userFull {
	return userFull{userShape: a.userShape(u), CreatedAt: stamp(u.CreatedAt), Bot: u.Bot}
}

func (a *API) userSelf(u tidelock.User) userSelf {
	return userSelf{
		userFull: a.userFull(u), Email: u.Email, CommitEmail: u.Email, IsAdmin: u.Admin, NamespaceID: u.Namespace,
		CanCreateGroup: !u.Bot, CanCreateProject: !u.Bot, Identities: []struct{}{},
	}
}

// userFor shows a user as much as the caller may see.
func (a *API) userFor(r *request, u tidelock.User) any {
	if by := r.by.User; by != nil && (by.Admin || by.ID == u.ID) {
		return a.userSelf(u)
	}
	return a.userFull(u)
}
