package forge

import (
	"context"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
)

// An Outbox is what waits to be told to hooks. It is the store's, without
// any rule: a worker takes from it, sends, and says how that went.
type Outbox interface {
	noticeStore

	// HookEvents lists what was noted after an event and not expanded yet,
	// oldest first; after 0 is from the beginning.
	// RecordPush notes, in its transaction, the branches and tags of a project
	// of which some hook wants to know.
	HookEvents(ctx context.Context, after tidelock.HookEventID, limit int) ([]tidelock.HookEvent, error)
	// ExpandHookEvent replaces an event by deliveries that wait, or does
	// nothing if it is gone. Deliveries to hooks that are gone are dropped, and
	// the oldest beyond so many that wait for one hook are given up.
	ExpandHookEvent(ctx context.Context, id tidelock.HookEventID, deliveries []tidelock.Delivery, most int) error
	// ClaimDeliveries leases deliveries that are due, so that nobody else has
	// them until the lease ends or an attempt is saved.
	ClaimDeliveries(context.Context, tidelock.Claim) ([]tidelock.Delivery, error)
	// NextDelivery is when the next one that waits for no other of its ref may
	// be claimed, be it that a lease ends then; zero when none waits. Yield is
	// as in a claim.
	NextDelivery(ctx context.Context, yield int) (time.Time, error)
	// SaveAttempt writes how far a delivery is, and makes one that has no id.
	// What failed counts as a failure of the hook, which is then held for as
	// long as hold says; without a hold it counts for nothing. A success ends
	// that either way.
	SaveAttempt(ctx context.Context, d tidelock.Delivery, hold func(failures int) time.Duration) (tidelock.Delivery, error)
	// TrimDeliveries removes those that wait no longer: older ones than a
	// time, and all but the newest of a hook.
	TrimDeliveries(ctx context.Context, before time.Time, keep int) error

	// Hook reads one of a project or of an integration.
	Hook(context.Context, tidelock.HookID) (tidelock.Hook, error)
}

// Outbox is what waits to be told to hooks, for the worker that sends it.
func (f *Forge) Outbox() Outbox { return f.store }

// hookStore is what the rules remember of hooks.
type hookStore interface {
	Outbox

	// CreateHook refuses, as Invalid, a hook of a project that has max.
	CreateHook(ctx context.Context, h tidelock.Hook, max int) (tidelock.Hook, error)
	// Hooks lists those of the project, but not of its integrations.
	Hooks(context.Context, tidelock.ProjectID, tidelock.Page) ([]tidelock.Hook, int, error)
	// UpdateHook writes all but project and creation, and forgets failures.
	UpdateHook(context.Context, tidelock.Hook) (tidelock.Hook, error)
	DeleteHook(context.Context, tidelock.HookID) error // with all its deliveries

	Delivery(context.Context, tidelock.DeliveryID) (tidelock.Delivery, error)
	// Deliveries lists those that were tried, newest first.
	Deliveries(context.Context, tidelock.DeliveryFilter, tidelock.Page) ([]tidelock.Delivery, int, error)
}

const (
	maxHooks       = 100 // of one project
	maxHookHeaders = 20
	maxHookText    = 2048 // bytes of a description, a token or a header's value
	maxHookFilter  = 255
)

// UnusedHookKinds are GitLab's kinds of events that never happen here.
var UnusedHookKinds = []string{
	"issues", "confidential_issues", "merge_requests", "note", "confidential_note", "job", "wiki_page", "releases",
	"milestone", "feature_flag", "resource_access_token", "resource_deploy_token", "emoji", "vulnerability", "repository_update",
}

// HookFields make or change a hook; nil fields stay as they are, and as they
// are by default in a new one.
type HookFields struct {
	URL          *string
	Name         *string
	Description  *string
	Token        *tidelock.Secret
	Kinds        map[string]bool // of HookKinds and UnusedHookKinds; those absent stay
	BranchFilter *string
	BranchMatch  *tidelock.BranchMatch
	Headers      *[]tidelock.HookHeader
	SkipVerify   *bool
}

// apply changes a hook. With its URL the hook loses the token and headers
// that are not given anew: whoever may change hooks must not learn by that
// what was made for another receiver.
func (f HookFields) apply(h *tidelock.Hook) {
	if f.URL != nil && *f.URL != h.ShownURL() && *f.URL != h.URL {
		h.URL, h.Token, h.Headers = *f.URL, tidelock.Secret{}, nil
	}
	set(&h.Name, f.Name)
	set(&h.Description, f.Description)
	set(&h.Token, f.Token)
	set(&h.BranchFilter, f.BranchFilter)
	set(&h.BranchMatch, f.BranchMatch)
	set(&h.Headers, f.Headers)
	set(&h.SkipVerify, f.SkipVerify)
	if h.BranchMatch == tidelock.AllBranches {
		h.BranchFilter = ""
	}
	wants := func(kind string, now bool) bool {
		if said, ok := f.Kinds[kind]; ok {
			return said
		}
		return now
	}
	var kinds []tidelock.HookKind
	for _, kind := range tidelock.HookKinds {
		if wants(string(kind), h.Wants(kind)) {
			kinds = append(kinds, kind)
		}
	}
	unused := []string{}
	for _, kind := range UnusedHookKinds {
		if wants(kind, slices.Contains(h.Unused, kind)) {
			unused = append(unused, kind)
		}
	}
	h.Kinds, h.Unused = kinds, unused
}

// Hooks lists the hooks of a project, secrets included: what of them may be
// shown is for the surface to say.
func (f *Forge) Hooks(ctx context.Context, p Principal, project tidelock.Project, page tidelock.Page) ([]tidelock.Hook, int, error) {
	if err := f.Allow(ctx, p, ReadHooks, OnProject(project)); err != nil {
		return nil, 0, err
	}
	return f.store.Hooks(ctx, project.ID, page)
}

// Hook reads a hook of a project.
func (f *Forge) Hook(ctx context.Context, p Principal, project tidelock.Project, id tidelock.HookID) (tidelock.Hook, error) {
	return f.HookFor(ctx, p, project, id, ReadHooks)
}

// HookFor reads a hook of a project for one action.
func (f *Forge) HookFor(ctx context.Context, p Principal, project tidelock.Project, id tidelock.HookID, a Action) (tidelock.Hook, error) {
	if err := f.Allow(ctx, p, a, OnProject(project)); err != nil {
		return tidelock.Hook{}, err
	}
	hook, err := f.store.Hook(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && (hook.Project != project.ID || hook.Integration != "")) {
		return tidelock.Hook{}, tidelock.Errorf(tidelock.NotFound, "Not found")
	}
	return hook, err
}

// CreateHook makes a hook. Unless told otherwise it is called for pushes to
// every branch, and verifies certificates.
func (f *Forge) CreateHook(ctx context.Context, p Principal, project tidelock.Project, fields HookFields) (tidelock.Hook, error) {
	if err := f.Allow(ctx, p, ManageHooks, OnProject(project)); err != nil {
		return tidelock.Hook{}, err
	}
	hook := tidelock.Hook{
		Project: project.ID, Kinds: []tidelock.HookKind{tidelock.HookPush}, BranchMatch: tidelock.BranchWildcard, CreatedAt: f.now().UTC(),
	}
	fields.apply(&hook)
	if err := f.checkHook(&hook); err != nil {
		return tidelock.Hook{}, err
	}
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		made, err := f.store.CreateHook(ctx, hook, maxHooks)
		if err != nil {
			return change{}, err
		}
		hook = made
		return hookChange("hook created", project, hook), nil
	})
	return hook, err
}

// EditHook changes a hook, and ends its being held for failures.
func (f *Forge) EditHook(ctx context.Context, p Principal, project tidelock.Project, id tidelock.HookID, fields HookFields) (tidelock.Hook, error) {
	return f.editHook(ctx, p, project, id, func(h *tidelock.Hook) error {
		fields.apply(h)
		return nil
	})
}

func (f *Forge) editHook(ctx context.Context, p Principal, project tidelock.Project, id tidelock.HookID, edit func(*tidelock.Hook) error) (tidelock.Hook, error) {
	if _, err := f.HookFor(ctx, p, project, id, ManageHooks); err != nil {
		return tidelock.Hook{}, err
	}
	var hook tidelock.Hook
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		err := f.store.LockProject(ctx, project.ID) // edits must not undo each other
		if err != nil {
			return change{}, err
		}
		if hook, err = f.store.Hook(ctx, id); err != nil {
			return change{}, err
		}
		if err := edit(&hook); err != nil {
			return change{}, err
		}
		if err := f.checkHook(&hook); err != nil {
			return change{}, err
		}
		if hook, err = f.store.UpdateHook(ctx, hook); err != nil {
			return change{}, err
		}
		return hookChange("hook changed", project, hook), nil
	})
	if err != nil {
		return tidelock.Hook{}, err
	}
	publish(f, tidelock.HooksDue{Project: project.ID}) // what waited for a held hook may go now
	return hook, nil
}

// SetHookHeader adds or changes one header of a hook.
func (f *Forge) SetHookHeader(ctx context.Context, p Principal, project tidelock.Project, id tidelock.HookID, header tidelock.HookHeader) error {
	_, err := f.editHook(ctx, p, project, id, func(h *tidelock.Hook) error {
		h.Headers = append(withoutHeader(h.Headers, header.Name), header)
		return nil
	})
	return err
}

// RemoveHookHeader removes one header of a hook.
func (f *Forge) RemoveHookHeader(ctx context.Context, p Principal, project tidelock.Project, id tidelock.HookID, name string) error {
	_, err := f.editHook(ctx, p, project, id, func(h *tidelock.Hook) error {
		rest := withoutHeader(h.Headers, name)
		if len(rest) == len(h.Headers) {
			return tidelock.Errorf(tidelock.NotFound, "Not found")
		}
		h.Headers = rest
		return nil
	})
	return err
}

func withoutHeader(headers []tidelock.HookHeader, name string) []tidelock.HookHeader {
	return slices.DeleteFunc(slices.Clone(headers), func(h tidelock.HookHeader) bool { return strings.EqualFold(h.Name, name) })
}

// DeleteHook removes a hook and what waited for it.
func (f *Forge) DeleteHook(ctx context.Context, p Principal, project tidelock.Project, id tidelock.HookID) error {
	hook, err := f.HookFor(ctx, p, project, id, ManageHooks)
	if err != nil {
		return err
	}
	return f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return hookChange("hook deleted", project, hook), f.store.DeleteHook(ctx, id)
	})
}

// hookChange names no more of the URL than its host: the rest may be secret.
func hookChange(act string, project tidelock.Project, h tidelock.Hook) change {
	host := ""
	if u, err := url.Parse(h.URL); err == nil {
		host = u.Host
	}
	words := make([]string, len(h.Kinds))
	for i, kind := range h.Kinds {
		words[i] = string(kind)
	}
	return change{
		act: act, on: OnProject(project), subject: fmt.Sprintf("hook %d %q", h.ID, h.Name),
		detail: fmt.Sprintf("calls %s for %s", host, strings.Join(words, ", ")),
	}
}

// checkHook refuses what cannot be a hook, and puts its headers in order.
func (f *Forge) checkHook(h *tidelock.Hook) error {
	u, err := tidelock.ParseHookURL(h.URL)
	if err != nil {
		return err
	}
	if err := f.checkHookURL(u); err != nil {
		return err
	}
	if h.Name != "" {
		if err := checkName("name", h.Name); err != nil {
			return err
		}
	}
	if len(h.Description) > maxHookText {
		return tidelock.FieldErrorf(tidelock.Invalid, "description", "is too long (maximum is %d characters)", maxHookText)
	}
	if err := checkHeaderValue("token", h.Token); err != nil {
		return err
	}
	if err := checkBranchFilter(h.BranchMatch, h.BranchFilter); err != nil {
		return err
	}
	return checkHookHeaders(h.Headers)
}

func checkBranchFilter(match tidelock.BranchMatch, filter string) error {
	const field = "push_events_branch_filter"
	switch {
	case len(filter) > maxHookFilter:
		return tidelock.FieldErrorf(tidelock.Invalid, field, "is too long (maximum is %d characters)", maxHookFilter)
	case match == tidelock.BranchRegex:
		if _, err := regexp.Compile(filter); err != nil {
			return tidelock.FieldErrorf(tidelock.Invalid, field, "must be a valid regular expression in RE2 syntax")
		}
	case match == tidelock.BranchWildcard:
		name := strings.ReplaceAll(filter, "*", "x")
		if filter != "" && tidelock.ValidRef(tidelock.BranchRef(name)) != nil {
			return tidelock.FieldErrorf(tidelock.Invalid, field, "is not a valid branch name")
		}
	case match != tidelock.AllBranches:
		return tidelock.FieldErrorf(tidelock.Invalid, "branch_filter_strategy", "does not have a valid value")
	}
	return nil
}

// ownHeaders are those that no hook may set: they are ours, or say how the
// message is cut and where it goes.
var ownHeaders = []string{
	"host", "content-type", "content-length", "user-agent", "idempotency-key",
	"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect", "http2-settings", "accept-encoding",
}

var headerPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9])?$`)

func checkHookHeaders(headers []tidelock.HookHeader) error {
	const field = "custom_headers"
	if len(headers) > maxHookHeaders {
		return tidelock.FieldErrorf(tidelock.Invalid, field, "are too many (maximum is %d)", maxHookHeaders)
	}
	seen := map[string]bool{}
	for _, h := range headers {
		name := strings.ToLower(h.Name)
		switch {
		case !headerPattern.MatchString(h.Name):
			return tidelock.FieldErrorf(tidelock.Invalid, field, "have a key that cannot be the name of a header")
		case slices.Contains(ownHeaders, name), strings.HasPrefix(name, "proxy-"), strings.HasPrefix(name, "x-gitlab-"):
			return tidelock.FieldErrorf(tidelock.Invalid, field, "must not set %s", h.Name)
		case seen[name]:
			return tidelock.FieldErrorf(tidelock.Invalid, field, "name %s twice", h.Name)
		}
		seen[name] = true
		if err := checkHeaderValue(field, h.Value); err != nil {
			return err
		}
	}
	slices.SortFunc(headers, func(a, b tidelock.HookHeader) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// checkHeaderValue refuses what would not arrive as it was given.
func checkHeaderValue(field string, value tidelock.Secret) error {
	text := value.Reveal()
	switch {
	case len(text) > maxHookText:
		return tidelock.FieldErrorf(tidelock.Invalid, field, "is too long (maximum is %d characters)", maxHookText)
	case strings.ContainsFunc(text, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }):
		return tidelock.FieldErrorf(tidelock.Invalid, field, "must not hold line breaks or other control characters")
	case strings.TrimSpace(text) != text:
		return tidelock.FieldErrorf(tidelock.Invalid, field, "must not begin or end with a space")
	}
	return nil
}

// Deliveries lists what was sent to a hook in the last days, newest first.
func (f *Forge) Deliveries(ctx context.Context, p Principal, project tidelock.Project, filter tidelock.DeliveryFilter, page tidelock.Page) ([]tidelock.Delivery, int, error) {
	if _, err := f.HookFor(ctx, p, project, filter.Hook, ReadHooks); err != nil {
		return nil, 0, err
	}
	return f.store.Deliveries(ctx, filter, page)
}

// DeliveryFor reads a delivery of a hook for one action.
func (f *Forge) DeliveryFor(ctx context.Context, p Principal, project tidelock.Project, hook tidelock.HookID, id tidelock.DeliveryID, a Action) (tidelock.Hook, tidelock.Delivery, error) {
	h, err := f.HookFor(ctx, p, project, hook, a)
	if err != nil {
		return tidelock.Hook{}, tidelock.Delivery{}, err
	}
	d, err := f.store.Delivery(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && d.Hook != hook) {
		return tidelock.Hook{}, tidelock.Delivery{}, tidelock.Errorf(tidelock.NotFound, "Not found")
	}
	return h, d, err
}
