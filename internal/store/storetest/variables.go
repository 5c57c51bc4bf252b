package storetest

import (
	"errors"
	"fmt"
	"strings"

	"tidelock.dev"
)

func variableName(v tidelock.Variable) string { return v.Key + "@" + v.Scope }

var variableTests = []test{
	{"are read as they were made and changed", func(w world) {
		site := w.site()
		for _, h := range []tidelock.Holder{{Project: site.ID}, {Namespace: site.Namespace}} {
			made, err := w.CreateVariable(w.Context(), tidelock.Variable{
				Holder: h, Key: "TOKEN", Scope: "prod/*", Value: tidelock.NewSecret("s3cret\n\u00e9"), Kind: tidelock.FileVariable,
				Protected: true, Masked: true, Hidden: true, Raw: true, Description: "for the registry",
			})
			w.ok(err)
			read := func() tidelock.Variable {
				w.Helper()
				list, total, err := w.Variables(w.Context(), tidelock.VariableFilter{Holder: h}, everything)
				w.ok(err)
				equal(w, total, 1)
				return list[0]
			}
			same := func(got, want tidelock.Variable) {
				w.Helper()
				equal(w, got.Value.Reveal(), want.Value.Reveal())
				got.Value, want.Value = tidelock.Secret{}, tidelock.Secret{}
				equal(w, fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
			}
			same(read(), made)
			made.Scope, made.Value, made.Kind, made.Description = "*", tidelock.NewSecret(strings.Repeat("x", 10_000)), tidelock.EnvironmentVariable, ""
			made.Protected, made.Masked, made.Hidden, made.Raw = false, false, false, false
			changed, err := w.ChangeVariable(w.Context(), made.ID, func(v *tidelock.Variable) error { *v = made; return nil })
			w.ok(err)
			same(changed, made)
			same(read(), made)
			stop := errors.New("stop")
			_, err = w.ChangeVariable(w.Context(), made.ID, func(v *tidelock.Variable) error { v.Masked = true; return stop })
			if !errors.Is(err, stop) {
				w.Fatalf("got %v, want %v", err, stop)
			}
			same(read(), made)
			w.ok(w.DeleteVariable(w.Context(), made.ID))
			w.kind(w.DeleteVariable(w.Context(), made.ID), tidelock.NotFound)
			_, err = w.ChangeVariable(w.Context(), made.ID, func(*tidelock.Variable) error { return nil })
			w.kind(err, tidelock.NotFound)
		}
	}},

	{"are unique by holder, key and scope", func(w world) {
		site := w.site()
		inSite, inTeam := tidelock.Holder{Project: site.ID}, tidelock.Holder{Namespace: site.Namespace}
		create := func(h tidelock.Holder, key, scope string) (tidelock.Variable, error) {
			return w.CreateVariable(w.Context(), tidelock.Variable{Holder: h, Key: key, Scope: scope, Kind: tidelock.EnvironmentVariable})
		}
		for _, h := range []tidelock.Holder{inSite, inTeam} {
			_, err := create(h, "A", "*")
			w.ok(err)
			_, err = create(h, "a", "*") // letter case counts
			w.ok(err)
			other, err := create(h, "A", "prod")
			w.ok(err)
			_, err = create(h, "A", "prod")
			w.kind(err, tidelock.Conflict)
			equal(w, err.Error(), "key (A) has already been taken")
			_, err = w.ChangeVariable(w.Context(), other.ID, func(v *tidelock.Variable) error { v.Scope = "*"; return nil })
			w.kind(err, tidelock.Conflict)
		}
		_, err := create(tidelock.Holder{Project: 99}, "A", "*")
		w.kind(err, tidelock.NotFound)
		_, err = create(tidelock.Holder{Namespace: 99}, "A", "*")
		w.kind(err, tidelock.NotFound)

		prod, none := "prod", ""
		for _, tt := range []struct {
			filter tidelock.VariableFilter
			want   string
		}{
			{tidelock.VariableFilter{Holder: inSite}, "A@* a@* A@prod"},
			{tidelock.VariableFilter{Holder: inSite, Key: "A"}, "A@* A@prod"},
			{tidelock.VariableFilter{Holder: inTeam, Key: "A", Scope: &prod}, "A@prod"},
			{tidelock.VariableFilter{Holder: inTeam, Key: "A", Scope: &none}, ""},
			{tidelock.VariableFilter{}, ""},
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, variableName)(w.Variables(w.Context(), tt.filter, everything)), tt.want)
		}
		paged(w, 3, variableName, func(p tidelock.Page) ([]tidelock.Variable, int, error) {
			return w.Variables(w.Context(), tidelock.VariableFilter{Holder: inSite}, p)
		})
	}},

	{"keep every change made at once", func(w world) {
		v, err := w.CreateVariable(w.Context(), tidelock.Variable{Holder: tidelock.Holder{Project: w.site().ID}, Key: "A", Scope: "*"})
		w.ok(err)
		for _, err := range together(8, func(int) error {
			_, err := w.ChangeVariable(w.Context(), v.ID, func(v *tidelock.Variable) error { v.Description += "x"; return nil })
			return err
		}) {
			w.ok(err)
		}
		list, _, err := w.Variables(w.Context(), tidelock.VariableFilter{Holder: v.Holder}, everything)
		w.ok(err)
		equal(w, list[0].Description, "xxxxxxxx")
	}},

	{"go with their project", func(w world) {
		site := w.site()
		inSite := tidelock.Holder{Project: site.ID}
		_, err := w.CreateVariable(w.Context(), tidelock.Variable{Holder: inSite, Key: "A", Scope: "*"})
		w.ok(err)
		w.ok(w.DeleteProject(w.Context(), site.ID))
		equal(w, names(w, variableName)(w.Variables(w.Context(), tidelock.VariableFilter{Holder: inSite}, everything)), "")
	}},
}
