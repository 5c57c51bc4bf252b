package forge

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

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

const (
	maxTagRules   = 20  // of one project
	maxTagPattern = 100 // characters
)

// TagRules lists the rules about tags of a project's images.
func (f *Forge) TagRules(ctx context.Context, p Principal, project tidelock.Project) ([]tidelock.TagRule, error) {
	if err := f.Allow(ctx, p, ReadTagRules, OnProject(project)); err != nil {
		return nil, err
	}
	return f.store.TagRules(ctx, project.ID)
}

// SaveTagRule makes a rule, or changes the one with the rule's id. A rule that
// makes tags immutable cannot be changed, only removed.
func (f *Forge) SaveTagRule(ctx context.Context, p Principal, project tidelock.Project, rule tidelock.TagRule) (tidelock.TagRule, error) {
	if err := f.Allow(ctx, p, ManageImages, OnProject(project)); err != nil {
		return tidelock.TagRule{}, err
	}
	if err := checkTagRule(rule); err != nil {
		return tidelock.TagRule{}, err
	}
	rule.Project = project.ID
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		rules, err := f.store.TagRules(ctx, project.ID)
		if err != nil {
			return change{}, fmt.Errorf("list the tag rules of project %d: %w", project.ID, err)
		}
		act, before := "image tag rule created", tidelock.TagRule{}
		if rule.ID != 0 {
			act = "image tag rule edited"
			at := slices.IndexFunc(rules, func(r tidelock.TagRule) bool { return r.ID == rule.ID })
			if at < 0 {
				return change{}, errNoTagRule()
			}
			if before = rules[at]; before.Immutable() {
				return change{}, tidelock.Errorf(tidelock.Invalid, "a rule that makes tags immutable cannot be changed; delete it and make another")
			}
		} else if len(rules) >= maxTagRules {
			return change{}, tidelock.Errorf(tidelock.Invalid, "a project may have up to %d tag rules", maxTagRules)
		}
		saved, err := f.store.SaveTagRule(ctx, rule)
		if err != nil {
			return change{}, err
		}
		rule.ID = saved.ID
		return change{act: act, on: OnProject(project), subject: rule.Pattern, detail: differences(
			"pattern", before.Pattern, rule.Pattern,
			"push", roleOrNobody(before.PushLevel, before.ID != 0), roleOrNobody(rule.PushLevel, true),
			"delete", roleOrNobody(before.DeleteLevel, before.ID != 0), roleOrNobody(rule.DeleteLevel, true),
		)}, nil
	})
	if err != nil {
		return tidelock.TagRule{}, err
	}
	return rule, nil
}

// SetImmutableTags makes the rules of a project that keep tags as they are those
// of the patterns, and leaves rules by role alone.
func (f *Forge) SetImmutableTags(ctx context.Context, p Principal, project tidelock.Project, patterns []string) error {
	if err := f.Allow(ctx, p, ManageImages, OnProject(project)); err != nil {
		return err
	}
	for _, pattern := range patterns {
		if err := checkTagRule(tidelock.TagRule{Pattern: pattern}); err != nil {
			return err
		}
	}
	return f.audited(ctx, p, func(ctx context.Context) (change, error) {
		rules, err := f.store.TagRules(ctx, project.ID)
		if err != nil {
			return change{}, fmt.Errorf("list the tag rules of project %d: %w", project.ID, err)
		}
		var before []string
		for _, r := range rules {
			if !r.Immutable() {
				continue
			}
			before = append(before, r.Pattern)
			if !slices.Contains(patterns, r.Pattern) {
				if err := f.store.RemoveTagRule(ctx, project.ID, r.ID); err != nil {
					return change{}, err
				}
			}
		}
		var after []string
		for _, pattern := range patterns {
			if slices.Contains(after, pattern) {
				continue
			}
			after = append(after, pattern)
			if slices.Contains(before, pattern) {
				continue
			}
			if _, err := f.store.SaveTagRule(ctx, tidelock.TagRule{Project: project.ID, Pattern: pattern}); err != nil {
				return change{}, err
			}
		}
		if len(rules)-len(before)+len(after) > maxTagRules {
			return change{}, tidelock.Errorf(tidelock.Invalid, "a project may have up to %d tag rules", maxTagRules)
		}
		return change{act: "image tag immutability edited", on: OnProject(project), detail: differences(
			"patterns", strings.Join(before, " "), strings.Join(after, " "),
		)}, nil
	})
}

func roleOrNobody(level tidelock.AccessLevel, known bool) string {
	switch {
	case !known:
		return ""
	case level == tidelock.NoAccess:
		return "nobody"
	}
	return level.String()
}

func checkTagRule(r tidelock.TagRule) error {
	switch {
	case r.Pattern == "":
		return tidelock.FieldErrorf(tidelock.Invalid, "tag_name_pattern", "can't be blank")
	case utf8.RuneCountInString(r.Pattern) > maxTagPattern:
		return tidelock.FieldErrorf(tidelock.Invalid, "tag_name_pattern", "is too long (maximum is %d characters)", maxTagPattern)
	}
	if _, err := regexp.Compile(r.Pattern); err != nil {
		return tidelock.FieldErrorf(tidelock.Invalid, "tag_name_pattern", "is not a regular expression (RE2): %v", err)
	}
	if (r.PushLevel == tidelock.NoAccess) != (r.DeleteLevel == tidelock.NoAccess) {
		return tidelock.FieldErrorf(tidelock.Invalid, "minimum_access_level_for_push", "and minimum_access_level_for_delete must be given together, or neither for immutable tags")
	}
	return nil
}

func errNoTagRule() error { return tidelock.Errorf(tidelock.NotFound, "Tag Rule Not Found") }

// RemoveTagRule removes a rule.
func (f *Forge) RemoveTagRule(ctx context.Context, p Principal, project tidelock.Project, id int64) error {
	if err := f.Allow(ctx, p, ManageImages, OnProject(project)); err != nil {
		return err
	}
	return f.audited(ctx, p, func(ctx context.Context) (change, error) {
		rules, err := f.store.TagRules(ctx, project.ID)
		if err != nil {
			return change{}, fmt.Errorf("list the tag rules of project %d: %w", project.ID, err)
		}
		at := slices.IndexFunc(rules, func(r tidelock.TagRule) bool { return r.ID == id })
		if at < 0 {
			return change{}, errNoTagRule()
		}
		return change{act: "image tag rule deleted", on: OnProject(project), subject: rules[at].Pattern},
			f.store.RemoveTagRule(ctx, project.ID, id)
	})
}

// DefaultRetention is what a project has until somebody changes it.
var DefaultRetention = tidelock.Retention{Every: 24 * time.Hour, KeepNewest: 10, OlderThan: 90 * 24 * time.Hour, Remove: ".*"}

// ImageSettings reads what a project says of its images, or the defaults.
func (f *Forge) ImageSettings(ctx context.Context, p Principal, project tidelock.Project) (tidelock.ImageSettings, error) {
	if err := f.Allow(ctx, p, ReadProject, OnProject(project)); err != nil {
		return tidelock.ImageSettings{}, err
	}
	return f.imageSettings(ctx, project.ID)
}

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

// RetentionFields change a retention; nil fields stay as they are.
type RetentionFields struct {
	Enabled    *bool
	Every      *time.Duration
	KeepNewest *int
	OlderThan  *time.Duration
	Keep       *string
	Remove     *string
}

// SetRetention changes which tags of a project are removed by and by.
func (f *Forge) SetRetention(ctx context.Context, p Principal, project tidelock.Project, fields RetentionFields) (tidelock.Retention, error) {
	if err := f.Allow(ctx, p, ManageImages, OnProject(project)); err != nil {
		return tidelock.Retention{}, err
	}
	var after tidelock.Retention
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		settings, err := f.imageSettings(ctx, project.ID)
		if err != nil {
			return change{}, err
		}
		before := settings.Retention
		r := &settings.Retention
		set(&r.Enabled, fields.Enabled)
		set(&r.Every, fields.Every)
		set(&r.KeepNewest, fields.KeepNewest)
		set(&r.OlderThan, fields.OlderThan)
		set(&r.Keep, fields.Keep)
		set(&r.Remove, fields.Remove)
		if err := checkRetention(*r); err != nil {
			return change{}, err
		}
		if r.Enabled && (!before.Enabled || r.Every != before.Every) {
			r.NextAt = f.now().UTC().Add(r.Every)
		}
		after = *r
		return change{act: "image retention edited", on: OnProject(project), detail: differences(
			"enabled", strconv.FormatBool(before.Enabled), strconv.FormatBool(r.Enabled),
			"every", before.Every.String(), r.Every.String(),
			"keep newest", strconv.Itoa(before.KeepNewest), strconv.Itoa(r.KeepNewest),
			"older than", before.OlderThan.String(), r.OlderThan.String(),
			"keep", before.Keep, r.Keep,
			"remove", before.Remove, r.Remove,
		)}, f.store.SaveImageSettings(ctx, settings)
	})
	return after, err
}

func checkRetention(r tidelock.Retention) error {
	switch {
	case r.Every < time.Hour:
		return tidelock.FieldErrorf(tidelock.Invalid, "cadence", "must be at least an hour")
	case r.KeepNewest < 0:
		return tidelock.FieldErrorf(tidelock.Invalid, "keep_n", "must not be negative")
	case r.OlderThan < 0:
		return tidelock.FieldErrorf(tidelock.Invalid, "older_than", "must not be negative")
	case r.Enabled && r.Remove == "":
		return tidelock.FieldErrorf(tidelock.Invalid, "name_regex_delete", "can't be blank")
	}
	for field, pattern := range map[string]string{"name_regex_keep": r.Keep, "name_regex_delete": r.Remove} {
		if len(pattern) > 255 {
			return tidelock.FieldErrorf(tidelock.Invalid, field, "is too long (maximum is 255 characters)")
		}
		if _, err := wholeName(pattern); err != nil {
			return tidelock.FieldErrorf(tidelock.Invalid, field, "is not a regular expression (RE2): %v", err)
		}
	}
	return nil
}

// SetImageQuota says how many bytes the images of a project may have: 0 is the
// forge's default, below 0 no limit. Administrators may.
func (f *Forge) SetImageQuota(ctx context.Context, p Principal, project tidelock.Project, quota int64) error {
	if err := f.Allow(ctx, p, Administer, OnForge); err != nil {
		return err
	}
	return f.audited(ctx, p, func(ctx context.Context) (change, error) {
		settings, err := f.imageSettings(ctx, project.ID)
		if err != nil {
			return change{}, err
		}
		before := settings.Quota
		settings.Quota = max(quota, -1)
		return change{act: "image quota edited", on: OnProject(project), detail: differences(
			"bytes", strconv.FormatInt(before, 10), strconv.FormatInt(settings.Quota, 10),
		)}, f.store.SaveImageSettings(ctx, settings)
	})
}

// ImageUsage is how many bytes the images of a project have, and may have:
// below 0 there is no limit.
func (f *Forge) ImageUsage(ctx context.Context, p Principal, project tidelock.Project) (used, quota int64, err error) {
	if err := f.Allow(ctx, p, ReadImages, OnProject(project)); err != nil {
		return 0, 0, err
	}
	if used, err = f.store.ImageUsage(ctx, project.ID); err != nil {
		return 0, 0, fmt.Errorf("count the images of project %d: %w", project.ID, err)
	}
	quota, err = f.imageQuotaOf(ctx, project.ID)
	return used, quota, err
}
