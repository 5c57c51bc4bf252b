package forge_test

import (
	"fmt"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func hookURL(text string) forge.HookFields { return forge.HookFields{URL: &text} }

// Every change of a hook is in the audit log, with its host and no more of
// its URL.
func TestHookAudit(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	site := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	fields := hookURL("https://ada:s3cret@ci.example:8443/s3cret?token=s3cret")
	token := tidelock.NewSecret("s3cret")
	fields.Token = &token
	hook, err := w.CreateHook(ctx, w.root, site, fields)
	if err != nil {
		t.Fatal(err)
	}
	name := "ci"
	steps := []func() error{
		func() error {
			_, err := w.EditHook(ctx, w.root, site, hook.ID, forge.HookFields{Name: &name})
			return err
		},
		func() error {
			return w.SetHookHeader(ctx, w.root, site, hook.ID, tidelock.HookHeader{Name: "X-Key", Value: token})
		},
		func() error { return w.RemoveHookHeader(ctx, w.root, site, hook.ID, "x-key") },
		func() error { return w.DeleteHook(ctx, w.root, site, hook.ID) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	events, _, err := w.store.AuditEvents(ctx, tidelock.AuditFilter{Holder: tidelock.Holder{Project: site.ID}}, tidelock.Page{})
	if err != nil {
		t.Fatal(err)
	}
	var acts []string
	for _, e := range events {
		if strings.HasPrefix(e.Act, "hook ") {
			acts = append(acts, e.Act)
			if !strings.Contains(e.Detail, "ci.example:8443") || strings.Contains(fmt.Sprint(e), "s3cret") {
				t.Errorf("%s says %q", e.Act, e.Detail)
			}
		}
	}
	if got, want := strings.Join(acts, ", "), "hook deleted, hook changed, hook changed, hook changed, hook created"; got != want {
		t.Errorf("got acts %q, want %q", got, want)
	}
}

// A hook of another project is not there, whoever asks, and nobody learns of
// one through a hook's methods who may not read them.
func TestHookElsewhere(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	group := w.group("team", tidelock.Public)
	site, shop := w.project(group, "site", tidelock.Public), w.project(group, "shop", tidelock.Public)
	hook, err := w.CreateHook(ctx, w.root, site, hookURL("https://ci.example"))
	if err != nil {
		t.Fatal(err)
	}
	developer := w.user("developer")
	w.member(forge.OnProject(site), developer, tidelock.Developer)
	for who, tt := range map[string]struct {
		by   forge.Principal
		in   tidelock.Project
		want tidelock.Kind
	}{
		"another project": {w.root, shop, tidelock.NotFound},
		"a developer":     {as(developer), site, tidelock.Denied},
		"nobody":          {forge.Principal{}, site, tidelock.Unauthenticated},
	} {
		_, readErr := w.Hook(ctx, tt.by, tt.in, hook.ID)
		_, editErr := w.EditHook(ctx, tt.by, tt.in, hook.ID, forge.HookFields{})
		_, _, listErr := w.Deliveries(ctx, tt.by, tt.in, tidelock.DeliveryFilter{Hook: hook.ID}, tidelock.Page{})
		for what, err := range map[string]error{
			"read": readErr, "edit": editErr, "list deliveries": listErr,
			"delete":        w.DeleteHook(ctx, tt.by, tt.in, hook.ID),
			"set header":    w.SetHookHeader(ctx, tt.by, tt.in, hook.ID, tidelock.HookHeader{Name: "A"}),
			"remove header": w.RemoveHookHeader(ctx, tt.by, tt.in, hook.ID, "A"),
		} {
			if tidelock.KindOf(err) != tt.want {
				t.Errorf("%s by %s: got %v, want %v", what, who, err, tt.want)
			}
		}
	}
}

func TestHookLimits(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	site := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	for range 100 {
		if _, err := w.CreateHook(ctx, w.root, site, hookURL("https://ci.example")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.CreateHook(ctx, w.root, site, hookURL("https://ci.example")); tidelock.KindOf(err) != tidelock.Invalid {
		t.Errorf("hook 101: got %v, want invalid", err)
	}
	headers := make([]tidelock.HookHeader, 21)
	for i := range headers {
		headers[i] = tidelock.HookHeader{Name: fmt.Sprint("A", i)}
	}
	fields := hookURL("https://ci.example")
	fields.Headers = &headers
	if _, err := w.CreateHook(ctx, w.root, site, fields); tidelock.KindOf(err) != tidelock.Invalid {
		t.Errorf("21 headers: got %v, want invalid", err)
	}
}
