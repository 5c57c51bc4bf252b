package forge

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// tagRules are those of one project, ready to be asked.
type tagRules []tagRule

type tagRule struct {
	tidelock.TagRule
	pattern *regexp.Regexp
}

func (f *Forge) tagRules(ctx context.Context, project tidelock.ProjectID) (tagRules, error) {
	list, err := f.store.TagRules(ctx, project)
	if err != nil {
		return nil, fmt.Errorf("list the tag rules of project %d: %w", project, err)
	}
	rules := make(tagRules, 0, len(list))
	for _, r := range list {
		pattern, err := regexp.Compile(r.Pattern)
		if err != nil {
			return nil, fmt.Errorf("read tag rule %d of project %d: %w", r.ID, project, err)
		}
		rules = append(rules, tagRule{r, pattern})
	}
	return rules, nil
}

// mayPush refuses to make a tag, or to move one that is there.
func (rules tagRules) mayPush(tag string, there bool, level tidelock.AccessLevel) error {
	for _, r := range rules {
		switch {
		case !r.pattern.MatchString(tag):
		case r.Immutable() && there:
			return errImmutable(tag, r)
		case !r.Immutable() && level < r.PushLevel:
			return registry.Errorf(tidelock.Denied, registry.Denied, "tag %q is protected by the rule %q: to push it needs the role %s", tag, r.Pattern, r.PushLevel)
		}
	}
	return nil
}

func (rules tagRules) mayDelete(tag string, level tidelock.AccessLevel) error {
	for _, r := range rules {
		switch {
		case !r.pattern.MatchString(tag):
		case r.Immutable():
			return errImmutable(tag, r)
		case level < r.DeleteLevel:
			return registry.Errorf(tidelock.Denied, registry.Denied, "tag %q is protected by the rule %q: to delete it needs the role %s", tag, r.Pattern, r.DeleteLevel)
		}
	}
	return nil
}

// keeps reports whether a rule keeps a tag from being cleaned up.
func (rules tagRules) keeps(tag string) bool {
	for _, r := range rules {
		if r.pattern.MatchString(tag) {
			return true
		}
	}
	return false
}

func errImmutable(tag string, r tagRule) error {
	return registry.Errorf(tidelock.Denied, registry.Denied,
		"tag %q is immutable by the rule %q of the project: it cannot be moved or deleted; push another tag", tag, r.Pattern)
}

// DefaultRetention is what a project has until somebody changes it.
var DefaultRetention = tidelock.Retention{Every: 24 * time.Hour, KeepNewest: 10, OlderThan: 90 * 24 * time.Hour, Remove: ".*"}

// imageSettings reads what a project says of its images, or the defaults.
func (f *Forge) imageSettings(ctx context.Context, project tidelock.ProjectID) (tidelock.ImageSettings, error) {
	settings, err := f.store.ImageSettings(ctx, project)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.ImageSettings{Project: project, Retention: DefaultRetention}, nil
	}
	if err != nil {
		return settings, fmt.Errorf("read the image settings of project %d: %w", project, err)
	}
	return settings, nil
}
