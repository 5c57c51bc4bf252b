package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (a *API) variableRoutes() []route {
	return []route{
		{get, "/projects/:id/variables", a.listVariables(onProject)},
		{post, "/projects/:id/variables", a.createVariable(onProject)},
		{get, "/projects/:id/variables/:key", a.showVariable(onProject)},
		{put, "/projects/:id/variables/:key", a.editVariable(onProject)},
		{del, "/projects/:id/variables/:key", a.deleteVariable(onProject)},

		{get, "/groups/:id/variables", a.listVariables(onGroup)},
		{post, "/groups/:id/variables", a.createVariable(onGroup)},
		{get, "/groups/:id/variables/:key", a.showVariable(onGroup)},
		{put, "/groups/:id/variables/:key", a.editVariable(onGroup)},
		{del, "/groups/:id/variables/:key", a.deleteVariable(onGroup)},
	}
}

var (
	readVariables   = acts{forge.ReadVariables, forge.ReadGroupVariables}
	manageVariables = acts{forge.ManageVariables, forge.ManageGroupVariables}
)

// A variableShape is a CI/CD variable; a hidden one has no value.
type variableShape struct {
	Type        tidelock.VariableKind `json:"variable_type"`
	Key         string                `json:"key"`
	Value       *string               `json:"value"`
	Hidden      bool                  `json:"hidden"`
	Protected   bool                  `json:"protected"`
	Masked      bool                  `json:"masked"`
	Raw         bool                  `json:"raw"`
	Scope       string                `json:"environment_scope"`
	Description *string               `json:"description"`
}

func newVariableShape(v tidelock.Variable) variableShape {
	shape := variableShape{
		Type: v.Kind, Key: v.Key, Hidden: v.Hidden, Protected: v.Protected, Masked: v.Masked, Raw: v.Raw,
		Scope: v.Scope, Description: orNull(v.Description),
	}
	if !v.Hidden {
		shape.Value = new(v.Value.Reveal())
	}
	return shape
}

// scopeFilter reads filter[environment_scope], which a query spells so and
// JSON as an object.
func (p *params) scopeFilter() *string {
	const name = "filter[environment_scope]"
	if filter, ok := p.values["filter"].(map[string]any); ok {
		scope, ok := plain(filter["environment_scope"])
		if !ok {
			p.note(name, "is invalid")
		}
		if filter["environment_scope"] != nil {
			return &scope
		}
		return nil
	}
	return given(p, name, p.text)
}

func (p *params) variableKind(name string) tidelock.VariableKind {
	return tidelock.VariableKind(p.word(name, string(tidelock.EnvironmentVariable), string(tidelock.FileVariable)))
}

func (p *params) secret(name string) tidelock.Secret { return tidelock.NewSecret(p.text(name)) }

func (a *API) listVariables(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readVariables)
		if err != nil {
			return err
		}
		page := r.page()
		if err := r.err(); err != nil {
			return err
		}
		variables, total, err := a.forge.Variables(r.ctx(), r.by, target, page)
		if err != nil {
			return err
		}
		return writePage(a, w, r, page, each(variables, newVariableShape), total)
	}
}

func (a *API) createVariable(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageVariables)
		if err != nil {
			return err
		}
		r.need("key", "value")
		v := tidelock.Variable{
			Key: r.text("key"), Value: r.secret("value"), Kind: r.variableKind("variable_type"), Scope: r.text("environment_scope"),
			Protected: r.flag("protected"), Masked: r.flag("masked"), Hidden: r.flag("masked_and_hidden"), Raw: r.flag("raw"),
			Description: r.text("description"),
		}
		if err := r.err(); err != nil {
			return err
		}
		made, err := a.forge.CreateVariable(r.ctx(), r.by, target, v)
		if err != nil {
			return err
		}
		return created(w, newVariableShape(made))
	}
}

func (a *API) showVariable(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readVariables)
		if err != nil {
			return err
		}
		scope := r.scopeFilter()
		if err := r.err(); err != nil {
			return err
		}
		v, err := a.forge.Variable(r.ctx(), r.by, target, r.arg("key"), scope)
		if err != nil {
			return err
		}
		return ok(w, newVariableShape(v))
	}
}

func (a *API) editVariable(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageVariables)
		if err != nil {
			return err
		}
		p := &r.params
		scope := p.scopeFilter()
		edit := forge.VariableEdit{
			Value: given(p, "value", p.secret), Kind: given(p, "variable_type", p.variableKind),
			Protected: given(p, "protected", p.flag), Masked: given(p, "masked", p.flag), Raw: given(p, "raw", p.flag),
			Scope: given(p, "environment_scope", p.text), Description: given(p, "description", p.text),
		}
		if err := r.err(); err != nil {
			return err
		}
		v, err := a.forge.EditVariable(r.ctx(), r.by, target, r.arg("key"), scope, edit)
		if err != nil {
			return err
		}
		return ok(w, newVariableShape(v))
	}
}

func (a *API) deleteVariable(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageVariables)
		if err != nil {
			return err
		}
		scope := r.scopeFilter()
		if err := r.err(); err != nil {
			return err
		}
		if err := a.forge.DeleteVariable(r.ctx(), r.by, target, r.arg("key"), scope); err != nil {
			return err
		}
		return gone(w)
	}
}
