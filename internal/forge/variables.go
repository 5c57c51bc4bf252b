package forge

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"tidelock.dev"
)

// variableStore is what the rules remember of CI/CD variables; values are
// sealed.
type variableStore interface {
	// CreateVariable is a Conflict, naming the attribute "key", when the
	// holder has one of the same key and scope.
	CreateVariable(context.Context, tidelock.Variable) (tidelock.Variable, error)
	// ChangeVariable has a function change all but id, holder and key, and
	// writes that unless the function returns an error. Nobody else changes the
	// variable meanwhile. Like CreateVariable it keeps key and scope unique.
	ChangeVariable(context.Context, tidelock.VariableID, func(*tidelock.Variable) error) (tidelock.Variable, error)
	DeleteVariable(context.Context, tidelock.VariableID) error
	// Variables lists those of exactly one holder.
	Variables(context.Context, tidelock.VariableFilter, tidelock.Page) ([]tidelock.Variable, int, error)
}

// Bounds of variables.
const (
	maxVariables     = 8000 // of one project or group
	maxVariableValue = 10_000
)

var (
	variableKey   = regexp.MustCompile(`^[a-zA-Z0-9_]{1,255}$`)
	variableScope = regexp.MustCompile(`^[a-zA-Z0-9_*${}. -]([a-zA-Z0-9_*${}./ -]*[a-zA-Z0-9_*${}. -])?$`)

	// What can be found in a log again, with and without "$" expanded.
	maskable    = regexp.MustCompile(`^[a-zA-Z0-9_+=/@:.~-]{8,}$`)
	maskableRaw = regexp.MustCompile(`^\S{8,}$`)
)

// CreateVariable adds a variable to a project or group. A hidden one is masked.
func (f *Forge) CreateVariable(ctx context.Context, p Principal, t Target, v tidelock.Variable) (tidelock.Variable, error) {
	if err := f.mayVariables(ctx, p, t, ManageVariables, ManageGroupVariables); err != nil {
		return tidelock.Variable{}, err
	}
	v.ID, v.Holder = 0, t.holder()
	v.Masked = v.Masked || v.Hidden
	if v.Scope == "" {
		v.Scope = "*"
	}
	if v.Kind == "" {
		v.Kind = tidelock.EnvironmentVariable
	}
	if err := checkVariable(v); err != nil {
		return tidelock.Variable{}, err
	}
	var made tidelock.Variable
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		_, n, err := f.store.Variables(ctx, tidelock.VariableFilter{Holder: v.Holder}, tidelock.Page{Number: 1, PerPage: 1})
		if err != nil {
			return change{}, err
		}
		if n >= maxVariables {
			return change{}, tidelock.Errorf(tidelock.Invalid, "%s has %d variables, which is the most there can be", t, n)
		}
		made, err = f.store.CreateVariable(ctx, v)
		return change{act: "variable created", on: t, subject: variableSubject(v), detail: variableDetail(v)}, err
	})
	if err != nil {
		return tidelock.Variable{}, err
	}
	return made, nil
}

// Variables lists the variables of exactly a project or group. The values of
// hidden ones are left out.
func (f *Forge) Variables(ctx context.Context, p Principal, t Target, page tidelock.Page) ([]tidelock.Variable, int, error) {
	if err := f.mayVariables(ctx, p, t, ReadVariables, ReadGroupVariables); err != nil {
		return nil, 0, err
	}
	list, total, err := f.store.Variables(ctx, tidelock.VariableFilter{Holder: t.holder()}, page)
	for i := range list {
		list[i] = withoutHidden(list[i])
	}
	return list, total, err
}

// Variable reads one variable; the scope is needed where several have the key.
func (f *Forge) Variable(ctx context.Context, p Principal, t Target, key string, scope *string) (tidelock.Variable, error) {
	if err := f.mayVariables(ctx, p, t, ReadVariables, ReadGroupVariables); err != nil {
		return tidelock.Variable{}, err
	}
	v, err := f.variable(ctx, t, key, scope)
	return withoutHidden(v), err
}

// A VariableEdit changes a variable; nil fields stay.
type VariableEdit struct {
	Value                  *tidelock.Secret
	Kind                   *tidelock.VariableKind
	Protected, Masked, Raw *bool
	Scope, Description     *string
}

// EditVariable changes a variable. One that is hidden stays masked.
func (f *Forge) EditVariable(ctx context.Context, p Principal, t Target, key string, scope *string, e VariableEdit) (tidelock.Variable, error) {
	if err := f.mayVariables(ctx, p, t, ManageVariables, ManageGroupVariables); err != nil {
		return tidelock.Variable{}, err
	}
	var v tidelock.Variable
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		found, err := f.variable(ctx, t, key, scope)
		if err != nil {
			return change{}, err
		}
		v, err = f.store.ChangeVariable(ctx, found.ID, func(v *tidelock.Variable) error {
			set(&v.Value, e.Value)
			set(&v.Kind, e.Kind)
			set(&v.Protected, e.Protected)
			set(&v.Masked, e.Masked)
			set(&v.Raw, e.Raw)
			set(&v.Scope, e.Scope)
			set(&v.Description, e.Description)
			if v.Hidden && !v.Masked {
				return tidelock.FieldErrorf(tidelock.Invalid, "masked", "must stay true for a hidden variable")
			}
			return checkVariable(*v)
		})
		c := change{act: "variable edited", on: t, subject: variableSubject(v), detail: variableDetail(v)}
		if e.Value != nil {
			c.detail += ", value changed"
		}
		return c, err
	})
	if err != nil {
		return tidelock.Variable{}, err
	}
	return withoutHidden(v), nil
}

// DeleteVariable removes a variable.
func (f *Forge) DeleteVariable(ctx context.Context, p Principal, t Target, key string, scope *string) error {
	if err := f.mayVariables(ctx, p, t, ManageVariables, ManageGroupVariables); err != nil {
		return err
	}
	return f.audited(ctx, p, func(ctx context.Context) (change, error) {
		v, err := f.variable(ctx, t, key, scope)
		if err != nil {
			return change{}, err
		}
		return change{act: "variable deleted", on: t, subject: variableSubject(v)}, f.store.DeleteVariable(ctx, v.ID)
	})
}

func (f *Forge) mayVariables(ctx context.Context, p Principal, t Target, project, group Action) error {
	if err := f.Allow(ctx, p, t.pick(project, group), t); err != nil {
		return err
	}
	if t.Group != nil && t.Group.Kind != tidelock.GroupNamespace {
		return errNoGroup()
	}
	return nil
}

// variable finds the only one that is meant.
func (f *Forge) variable(ctx context.Context, t Target, key string, scope *string) (tidelock.Variable, error) {
	found, total, err := f.store.Variables(ctx, tidelock.VariableFilter{Holder: t.holder(), Key: key, Scope: scope}, tidelock.Page{Number: 1, PerPage: 1})
	switch {
	case err != nil:
		return tidelock.Variable{}, fmt.Errorf("look for variable %q: %w", key, err)
	case len(found) == 0: // whatever was counted: it may go meanwhile
		return tidelock.Variable{}, tidelock.Errorf(tidelock.NotFound, "Variable Not Found")
	case total > 1:
		return tidelock.Variable{}, tidelock.Errorf(tidelock.Conflict, "There are multiple variables with provided parameters. Please use 'filter[environment_scope]'")
	}
	return found[0], nil
}

func checkVariable(v tidelock.Variable) error {
	value := v.Value.Reveal()
	switch {
	case !variableKey.MatchString(v.Key):
		return tidelock.FieldErrorf(tidelock.Invalid, "key", "can contain only letters, digits and '_', and is at most 255 characters long")
	case v.Kind != tidelock.EnvironmentVariable && v.Kind != tidelock.FileVariable:
		return tidelock.FieldErrorf(tidelock.Invalid, "variable_type", "does not have a valid value")
	case len(v.Scope) > 255 || !variableScope.MatchString(v.Scope):
		return tidelock.FieldErrorf(tidelock.Invalid, "environment_scope",
			"can contain only letters, digits, '-', '_', '/', '$', '{', '}', '.', '*' and spaces, cannot start or end with '/', and is at most 255 characters long")
	case utf8.RuneCountInString(v.Description) > 255 || !utf8.ValidString(v.Description):
		return tidelock.FieldErrorf(tidelock.Invalid, "description", "is too long (maximum is 255 characters)")
	case len(value) > maxVariableValue:
		return tidelock.FieldErrorf(tidelock.Invalid, "value", "is too long (maximum is %d bytes)", maxVariableValue)
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		return tidelock.FieldErrorf(tidelock.Invalid, "value", "must be text")
	case v.Masked && v.Raw && !maskableRaw.MatchString(value), v.Masked && !v.Raw && !maskable.MatchString(value):
		return tidelock.FieldErrorf(tidelock.Invalid, "value", "is invalid: to be masked it must be one line of at least 8 characters without spaces, and unless raw only of letters, digits and _+=/@:.~-")
	}
	return nil
}

func withoutHidden(v tidelock.Variable) tidelock.Variable {
	if v.Hidden {
		v.Value = tidelock.Secret{}
	}
	return v
}

func variableSubject(v tidelock.Variable) string {
	return fmt.Sprintf("variable %q for %q", v.Key, v.Scope)
}

func variableDetail(v tidelock.Variable) string {
	words := []string{string(v.Kind)}
	for _, flag := range []struct {
		set  bool
		word string
	}{{v.Protected, "protected"}, {v.Masked, "masked"}, {v.Hidden, "hidden"}, {v.Raw, "raw"}} {
		if flag.set {
			words = append(words, flag.word)
		}
	}
	return strings.Join(words, ", ")
}
