package gitlabapi_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (w *world) clientWith(token string) *gitlab.Client {
	w.t.Helper()
	c, err := gitlab.NewClient(token, gitlab.WithBaseURL(w.url), gitlab.WithCustomRetryMax(0))
	must(w.t, err)
	return c
}

// refused fails the test unless a call was answered with a status.
func refused(t *testing.T, what string, resp *gitlab.Response, err error, status int) {
	t.Helper()
	if err == nil || resp == nil || resp.StatusCode != status {
		t.Errorf("%s: got %v, want %d", what, err, status)
	}
}

func clientRotation(t *testing.T, w *world, c *gitlab.Client) {
	project := w.project(w.group("rotation", tidelock.Private), "site", tidelock.Private)
	ada := w.user("rotator")
	until := gitlab.ISOTime(time.Now().AddDate(0, 2, 0).UTC().Truncate(24 * time.Hour))
	week := time.Now().UTC().AddDate(0, 0, 7).Format(time.DateOnly)

	// Their own, by itself: with a token that may do nothing else.
	_, secret, err := w.forge.CreatePersonalToken(t.Context(), w.root, ada.ID, forge.NewToken{Name: "laptop", Scopes: []tidelock.Scope{tidelock.ScopeSelfRotate, tidelock.ScopeReadUser}})
	must(t, err)
	first := w.clientWith(secret.Reveal())
	second, _, err := first.PersonalAccessTokens.RotatePersonalAccessTokenSelf(nil)
	must(t, err)
	if second.Token == "" || second.Token == secret.Reveal() || second.Name != "laptop" || second.UserID != int64(ada.ID) || !second.Active || second.Revoked ||
		!slices.Equal(second.Scopes, []string{"read_user", "self_rotate"}) || second.ExpiresAt.String() != week || second.LastUsedAt != nil {
		t.Errorf("RotatePersonalAccessTokenSelf = %+v, want the same for a week", second)
	}
	_, resp, err := first.Users.CurrentUser()
	refused(t, "the old token", resp, err, http.StatusUnauthorized)
	self, _, err := w.clientWith(second.Token).Users.CurrentUser()
	must(t, err)
	if self.ID != int64(ada.ID) {
		t.Errorf("the new token is %+v's", self)
	}

	// By an administrator, with an end.
	third, _, err := c.PersonalAccessTokens.RotatePersonalAccessTokenByID(second.ID, &gitlab.RotatePersonalAccessTokenOptions{ExpiresAt: &until})
	must(t, err)
	if third.ExpiresAt.String() != until.String() || third.ID == second.ID {
		t.Errorf("RotatePersonalAccessTokenByID = %+v", third)
	}
	past := gitlab.ISOTime(time.Now().AddDate(0, 0, -1))
	_, resp, err = c.PersonalAccessTokens.RotatePersonalAccessTokenByID(third.ID, &gitlab.RotatePersonalAccessTokenOptions{ExpiresAt: &past})
	refused(t, "an end in the past", resp, err, http.StatusBadRequest)
	_, resp, err = c.PersonalAccessTokens.RotatePersonalAccessTokenByID(4711, nil)
	refused(t, "a token that does not exist", resp, err, http.StatusNotFound)
	_, resp, err = w.clientWith(third.Token).PersonalAccessTokens.RotatePersonalAccessTokenByID(third.ID, nil)
	refused(t, "by id with self_rotate alone", resp, err, http.StatusForbidden)

	// The first one again: whoever has it, or its heirs, loses all.
	_, resp, err = first.PersonalAccessTokens.RotatePersonalAccessTokenSelf(nil)
	refused(t, "rotating a rotated token", resp, err, http.StatusUnauthorized)
	_, resp, err = w.clientWith(third.Token).Users.CurrentUser()
	refused(t, "its heir", resp, err, http.StatusUnauthorized)

	// Tokens of projects and groups keep their bot.
	ofProject, _, err := c.ProjectAccessTokens.CreateProjectAccessToken("rotation/site", &gitlab.CreateProjectAccessTokenOptions{
		Name: gitlab.Ptr("ci"), Scopes: gitlab.Ptr([]string{"self_rotate", "read_api"}), AccessLevel: gitlab.Ptr(gitlab.ReporterPermissions),
	})
	must(t, err)
	rotated, _, err := c.ProjectAccessTokens.RotateProjectAccessToken("rotation/site", ofProject.ID, &gitlab.RotateProjectAccessTokenOptions{ExpiresAt: &until})
	must(t, err)
	again, _, err := w.clientWith(rotated.Token).ProjectAccessTokens.RotateProjectAccessTokenSelf("Rotation/Site", nil)
	must(t, err)
	if again.UserID != ofProject.UserID || again.AccessLevel != gitlab.ReporterPermissions || again.Name != "ci" {
		t.Errorf("RotateProjectAccessTokenSelf = %+v, want the same bot", again)
	}
	asBot := w.clientWith(again.Token)
	_, _, err = asBot.Projects.GetProject(int64(project.ID), nil)
	must(t, err)
	_, resp, err = asBot.ProjectAccessTokens.RotateProjectAccessTokenSelf("rotation/other", nil)
	refused(t, "under another project's name", resp, err, http.StatusNotFound)
	_, resp, err = asBot.PersonalAccessTokens.RotatePersonalAccessTokenSelf(nil)
	refused(t, "as a personal token", resp, err, http.StatusBadRequest)
	_, resp, err = c.ProjectAccessTokens.RotateProjectAccessToken("rotation/site", ofProject.ID, nil)
	refused(t, "the first again", resp, err, http.StatusUnauthorized)
	_, resp, err = asBot.Projects.GetProject(int64(project.ID), nil)
	refused(t, "the heir of the first", resp, err, http.StatusUnauthorized)

	ofGroup, _, err := c.GroupAccessTokens.CreateGroupAccessToken("rotation", &gitlab.CreateGroupAccessTokenOptions{
		Name: gitlab.Ptr("ci"), Scopes: gitlab.Ptr([]string{"api"}),
	})
	must(t, err)
	groupRotated, _, err := c.GroupAccessTokens.RotateGroupAccessToken("rotation", ofGroup.ID, nil)
	must(t, err)
	groupAgain, _, err := w.clientWith(groupRotated.Token).GroupAccessTokens.RotateGroupAccessTokenSelf("rotation", nil)
	must(t, err)
	if groupAgain.UserID != ofGroup.UserID {
		t.Errorf("RotateGroupAccessTokenSelf = %+v, want the same bot", groupAgain)
	}
	_, resp, err = w.clientWith(groupAgain.Token).GroupAccessTokens.RotateGroupAccessToken("rotation", groupAgain.ID, nil)
	refused(t, "a group token by its id", resp, err, http.StatusForbidden)

	// Lists by what clients filter by.
	yes, no := true, false
	for name, tc := range map[string]struct {
		opts *gitlab.ListPersonalAccessTokensOptions
		want int
	}{
		"revoked":         {&gitlab.ListPersonalAccessTokensOptions{Revoked: &yes}, 3},
		"not revoked":     {&gitlab.ListPersonalAccessTokensOptions{Revoked: &no}, 0},
		"searched":        {&gitlab.ListPersonalAccessTokensOptions{Search: gitlab.Ptr("LAP")}, 3},
		"searched wrong":  {&gitlab.ListPersonalAccessTokensOptions{Search: gitlab.Ptr("desk")}, 0},
		"created after":   {&gitlab.ListPersonalAccessTokensOptions{CreatedAfter: gitlab.Ptr(gitlab.ISOTime(time.Now().AddDate(0, 0, 2)))}, 0},
		"created before":  {&gitlab.ListPersonalAccessTokensOptions{CreatedBefore: gitlab.Ptr(gitlab.ISOTime(time.Now().AddDate(0, 0, 2)))}, 3},
		"last used after": {&gitlab.ListPersonalAccessTokensOptions{LastUsedAfter: gitlab.Ptr(gitlab.ISOTime(time.Now().AddDate(0, 0, 2)))}, 0},
	} {
		tc.opts.UserID = gitlab.Ptr(int64(ada.ID))
		tokens, _, err := c.PersonalAccessTokens.ListPersonalAccessTokens(tc.opts)
		must(t, err)
		if len(tokens) != tc.want {
			t.Errorf("%s: got %d tokens, want %d", name, len(tokens), tc.want)
		}
	}
	sorted, _, err := c.PersonalAccessTokens.ListPersonalAccessTokens(&gitlab.ListPersonalAccessTokensOptions{UserID: gitlab.Ptr(int64(ada.ID)), Sort: gitlab.Ptr("expires_desc")})
	must(t, err)
	if len(sorted) != 3 || sorted[2].ID != second.ID {
		t.Errorf("sorted by expiry the last is %+v, want the one for a week", sorted[len(sorted)-1])
	}
}

func clientShares(t *testing.T, w *world, c *gitlab.Client) {
	team, dev := w.group("sharing", tidelock.Private), w.group("devs", tidelock.Private)
	project := w.project(team, "site", tidelock.Private)
	ada, eve := w.user("sharedwith"), w.user("notshared")
	_, err := w.forge.SetMember(t.Context(), w.root, forge.OnGroup(dev), ada.ID, tidelock.Owner, time.Time{})
	must(t, err)
	asAda, asEve := w.clientWith(w.personal(ada, tidelock.ScopeAPI)), w.clientWith(w.personal(eve, tidelock.ScopeAPI))
	_, resp, err := asAda.Projects.GetProject("sharing/site", nil)
	refused(t, "before the share", resp, err, http.StatusNotFound)

	opts := &gitlab.ShareWithGroupOptions{GroupID: gitlab.Ptr(int64(dev.ID)), GroupAccess: gitlab.Ptr(gitlab.MaintainerPermissions), ExpiresAt: gitlab.Ptr("2099-12-31")}
	_, err = c.Projects.ShareProjectWithGroup("sharing/site", opts)
	must(t, err)
	resp, err = c.Projects.ShareProjectWithGroup("sharing/site", opts)
	refused(t, "sharing twice", resp, err, http.StatusConflict)
	if err == nil || !strings.Contains(err.Error(), "already shared with this group") {
		t.Errorf("sharing twice: %v", err)
	}
	shared, _, err := c.Projects.GetProject("sharing/site", nil)
	must(t, err)
	if len(shared.SharedWithGroups) != 1 || shared.SharedWithGroups[0].GroupID != int64(dev.ID) || shared.SharedWithGroups[0].GroupFullPath != "devs" ||
		shared.SharedWithGroups[0].GroupName != "devs" || shared.SharedWithGroups[0].GroupAccessLevel != 40 {
		t.Errorf("shared_with_groups is %+v", shared.SharedWithGroups)
	}
	groups, _, err := c.Projects.ListProjectsInvitedGroups("sharing/site", nil)
	must(t, err)
	if len(groups) != 1 || groups[0].FullPath != "devs" {
		t.Errorf("ListProjectsInvitedGroups = %+v", groups)
	}

	// The owner of the group is a maintainer of the project, and no more.
	seen, _, err := asAda.Projects.GetProject("sharing/site", nil)
	must(t, err)
	if seen.Permissions.ProjectAccess == nil || seen.Permissions.ProjectAccess.AccessLevel != gitlab.MaintainerPermissions {
		t.Errorf("permissions are %+v", seen.Permissions)
	}
	_, _, err = asAda.Projects.EditProject("sharing/site", &gitlab.EditProjectOptions{Description: gitlab.Ptr("ours")})
	must(t, err)
	resp, err = asAda.Projects.DeleteProject("sharing/site", nil)
	refused(t, "deleting by a share", resp, err, http.StatusForbidden)
	listed, _, err := asAda.Projects.ListProjects(&gitlab.ListProjectsOptions{Membership: gitlab.Ptr(true)})
	must(t, err)
	if len(listed) != 1 || listed[0].ID != int64(project.ID) {
		t.Errorf("ada is a member of %d projects", len(listed))
	}
	for _, list := range []func() ([]*gitlab.Project, *gitlab.Response, error){
		func() ([]*gitlab.Project, *gitlab.Response, error) {
			return asAda.Groups.ListGroupSharedProjects("devs", nil)
		},
		func() ([]*gitlab.Project, *gitlab.Response, error) {
			return asAda.Groups.ListGroupProjects("devs", nil)
		},
	} {
		projects, _, err := list()
		must(t, err)
		if len(projects) != 1 || projects[0].ID != int64(project.ID) {
			t.Errorf("the group's shared projects are %+v", projects)
		}
	}
	unshared, _, err := asAda.Groups.ListGroupProjects("devs", &gitlab.ListGroupProjectsOptions{WithShared: gitlab.Ptr(false)})
	must(t, err)
	if len(unshared) != 0 {
		t.Errorf("the group's own projects are %+v", unshared)
	}
	member, _, err := c.ProjectMembers.GetInheritedProjectMember("sharing/site", int64(ada.ID))
	must(t, err)
	if member.AccessLevel != gitlab.MaintainerPermissions {
		t.Errorf("GetInheritedProjectMember = %+v", member)
	}
	_, resp, err = asEve.Projects.GetProject("sharing/site", nil)
	refused(t, "a stranger", resp, err, http.StatusNotFound)

	resp, err = c.Projects.ShareProjectWithGroup("sharing/site", &gitlab.ShareWithGroupOptions{GroupID: gitlab.Ptr(int64(team.ID)), GroupAccess: gitlab.Ptr(gitlab.GuestPermissions)})
	refused(t, "with its own group", resp, err, http.StatusBadRequest)
	resp, err = c.Projects.ShareProjectWithGroup("sharing/site", &gitlab.ShareWithGroupOptions{GroupID: gitlab.Ptr(int64(4711)), GroupAccess: gitlab.Ptr(gitlab.GuestPermissions)})
	refused(t, "with no group", resp, err, http.StatusNotFound)
	resp, err = c.Projects.DeleteSharedProjectFromGroup("sharing/site", int64(team.ID))
	refused(t, "ending no share", resp, err, http.StatusNotFound)
	_, err = c.Projects.DeleteSharedProjectFromGroup("sharing/site", int64(dev.ID))
	must(t, err)
	_, resp, err = asAda.Projects.GetProject("sharing/site", nil)
	refused(t, "after the share", resp, err, http.StatusNotFound)
}

func clientVariables(t *testing.T, w *world, c *gitlab.Client) {
	w.project(w.group("vars", tidelock.Private), "site", tidelock.Private)

	made, _, err := c.ProjectVariables.CreateVariable("vars/site", &gitlab.CreateProjectVariableOptions{
		Key: gitlab.Ptr("TOKEN"), Value: gitlab.Ptr("s3cret-value"), Masked: gitlab.Ptr(true), Protected: gitlab.Ptr(true), Description: gitlab.Ptr("of the registry"),
	})
	must(t, err)
	if made.Key != "TOKEN" || made.Value != "s3cret-value" || !made.Masked || !made.Protected || made.Hidden || made.EnvironmentScope != "*" ||
		made.VariableType != gitlab.EnvVariableType || made.Description != "of the registry" {
		t.Errorf("CreateVariable = %+v", made)
	}
	hidden, _, err := c.ProjectVariables.CreateVariable("vars/site", &gitlab.CreateProjectVariableOptions{
		Key: gitlab.Ptr("TOKEN"), Value: gitlab.Ptr("h1dden-value"), MaskedAndHidden: gitlab.Ptr(true), EnvironmentScope: gitlab.Ptr("prod/*"),
		VariableType: gitlab.Ptr(gitlab.FileVariableType), Raw: gitlab.Ptr(true),
	})
	must(t, err)
	if hidden.Value != "" && !hidden.Hidden || !hidden.Masked || !hidden.Raw || hidden.VariableType != gitlab.FileVariableType {
		t.Errorf("CreateVariable hidden = %+v", hidden)
	}
	_, resp, err := c.ProjectVariables.CreateVariable("vars/site", &gitlab.CreateProjectVariableOptions{Key: gitlab.Ptr("TOKEN"), Value: gitlab.Ptr("x")})
	refused(t, "the same key and scope", resp, err, http.StatusBadRequest)
	for name, opts := range map[string]*gitlab.CreateProjectVariableOptions{
		"key":   {Key: gitlab.Ptr("NOT-A-KEY"), Value: gitlab.Ptr("x")},
		"short": {Key: gitlab.Ptr("A"), Value: gitlab.Ptr("1234567"), Masked: gitlab.Ptr(true)},
		"lines": {Key: gitlab.Ptr("A"), Value: gitlab.Ptr("12345678\n12345678"), Masked: gitlab.Ptr(true), Raw: gitlab.Ptr(true)},
		"space": {Key: gitlab.Ptr("A"), Value: gitlab.Ptr("1234 5678"), Masked: gitlab.Ptr(true)},
		"signs": {Key: gitlab.Ptr("A"), Value: gitlab.Ptr("1234$5678"), Masked: gitlab.Ptr(true)},
		"long":  {Key: gitlab.Ptr("A"), Value: gitlab.Ptr(strings.Repeat("x", 10_001))},
		"scope": {Key: gitlab.Ptr("A"), Value: gitlab.Ptr("x"), EnvironmentScope: gitlab.Ptr("/prod")},
	} {
		_, resp, err := c.ProjectVariables.CreateVariable("vars/site", opts)
		refused(t, "a wrong "+name, resp, err, http.StatusBadRequest)
	}

	all, _, err := c.ProjectVariables.ListVariables("vars/site", nil)
	must(t, err)
	if len(all) != 2 || all[0].Value != "s3cret-value" || all[1].Value != "" || !all[1].Hidden {
		t.Errorf("ListVariables = %+v, %+v", all[0], all[1])
	}
	_, resp, err = c.ProjectVariables.GetVariable("vars/site", "TOKEN", nil)
	refused(t, "one of two", resp, err, http.StatusConflict)
	prod := &gitlab.VariableFilter{EnvironmentScope: "prod/*"}
	one, _, err := c.ProjectVariables.GetVariable("vars/site", "TOKEN", &gitlab.GetProjectVariableOptions{Filter: prod})
	must(t, err)
	if one.EnvironmentScope != "prod/*" || one.Value != "" {
		t.Errorf("GetVariable = %+v", one)
	}
	_, resp, err = c.ProjectVariables.UpdateVariable("vars/site", "TOKEN", &gitlab.UpdateProjectVariableOptions{Filter: prod, Masked: gitlab.Ptr(false)})
	refused(t, "unmasking what is hidden", resp, err, http.StatusBadRequest)
	edited, _, err := c.ProjectVariables.UpdateVariable("vars/site", "TOKEN", &gitlab.UpdateProjectVariableOptions{
		Filter: prod, Value: gitlab.Ptr("other-value"), EnvironmentScope: gitlab.Ptr("staging"), Description: gitlab.Ptr("new"),
	})
	must(t, err)
	if edited.EnvironmentScope != "staging" || edited.Value != "" || !edited.Hidden || edited.Description != "new" || edited.VariableType != gitlab.FileVariableType {
		t.Errorf("UpdateVariable = %+v", edited)
	}
	_, err = c.ProjectVariables.RemoveVariable("vars/site", "TOKEN", &gitlab.RemoveProjectVariableOptions{Filter: &gitlab.VariableFilter{EnvironmentScope: "staging"}})
	must(t, err)
	_, err = c.ProjectVariables.RemoveVariable("vars/site", "TOKEN", nil)
	must(t, err)
	_, resp, err = c.ProjectVariables.GetVariable("vars/site", "TOKEN", nil)
	refused(t, "a removed one", resp, err, http.StatusNotFound)

	inGroup, _, err := c.GroupVariables.CreateVariable("vars", &gitlab.CreateGroupVariableOptions{Key: gitlab.Ptr("A"), Value: gitlab.Ptr("")})
	must(t, err)
	if inGroup.Key != "A" || inGroup.Value != "" || inGroup.Hidden {
		t.Errorf("CreateVariable = %+v", inGroup)
	}
	_, _, err = c.GroupVariables.UpdateVariable("vars", "A", &gitlab.UpdateGroupVariableOptions{Value: gitlab.Ptr("b")})
	must(t, err)
	again, _, err := c.GroupVariables.GetVariable("vars", "A", nil)
	must(t, err)
	groupAll, _, err := c.GroupVariables.ListVariables("vars", nil)
	must(t, err)
	if again.Value != "b" || len(groupAll) != 1 || groupAll[0].Value != "b" {
		t.Errorf("group variables %+v, %+v", again, groupAll)
	}
	_, err = c.GroupVariables.RemoveVariable("vars", "A", nil)
	must(t, err)
}

func clientUserChanges(t *testing.T, w *world, c *gitlab.Client) {
	bob := w.user("blockme")
	asBob := w.clientWith(w.personal(bob, tidelock.ScopeAPI))
	edited, _, err := c.Users.ModifyUser(int64(bob.ID), &gitlab.ModifyUserOptions{
		Username: gitlab.Ptr("blockme"), Name: gitlab.Ptr("Bob"), Email: gitlab.Ptr("bob@example.com"), Admin: gitlab.Ptr(true),
	})
	must(t, err)
	if edited.Name != "Bob" || edited.Email != "bob@example.com" || !edited.IsAdmin {
		t.Errorf("ModifyUser = %+v", edited)
	}
	_, resp, err := c.Users.ModifyUser(int64(bob.ID), &gitlab.ModifyUserOptions{Username: gitlab.Ptr("other")})
	refused(t, "another user name", resp, err, http.StatusBadRequest)
	_, resp, err = c.Users.ModifyUser(4711, &gitlab.ModifyUserOptions{Name: gitlab.Ptr("x")})
	refused(t, "nobody", resp, err, http.StatusNotFound)
	_, resp, err = c.Users.ModifyUser(int64(w.root.User.ID), &gitlab.ModifyUserOptions{Admin: gitlab.Ptr(false)})
	refused(t, "demoting oneself", resp, err, http.StatusForbidden)
	if err := c.Users.BlockUser(int64(w.root.User.ID)); err == nil {
		t.Error("root blocked itself")
	}
	must(t, c.Users.BlockUser(int64(bob.ID)))
	_, resp, err = asBob.Users.CurrentUser()
	refused(t, "a blocked user", resp, err, http.StatusUnauthorized)
	blocked, _, err := c.Users.GetUser(int64(bob.ID), gitlab.GetUsersOptions{})
	must(t, err)
	if blocked.State != "blocked" {
		t.Errorf("GetUser = %+v", blocked)
	}
	must(t, c.Users.UnblockUser(int64(bob.ID)))
	_, _, err = asBob.Users.CurrentUser()
	must(t, err)
}

func clientAudit(t *testing.T, w *world, c *gitlab.Client) {
	group := w.group("audited", tidelock.Private)
	project := w.project(group, "site", tidelock.Private)
	before := time.Now().Add(-time.Minute)
	_, _, err := c.Projects.EditProject("audited/site", &gitlab.EditProjectOptions{Path: gitlab.Ptr("page")})
	must(t, err)
	token, _, err := c.ProjectAccessTokens.CreateProjectAccessToken("audited/page", &gitlab.CreateProjectAccessTokenOptions{
		Name: gitlab.Ptr("ci"), Scopes: gitlab.Ptr([]string{"read_api"}), AccessLevel: gitlab.Ptr(gitlab.DeveloperPermissions),
	})
	must(t, err)

	events, _, err := c.AuditEvents.ListProjectAuditEvents("audited/page", &gitlab.ListAuditEventsOptions{CreatedAfter: &before})
	must(t, err)
	if len(events) != 3 {
		t.Fatalf("got %d events, want 3", len(events))
	}
	last := events[0]
	if last.EventName != "token_created" || last.AuthorID != int64(w.root.User.ID) || last.EntityID != int64(project.ID) || last.EntityType != "Project" || last.CreatedAt == nil ||
		last.Details.AuthorName != "root" || last.Details.IPAddress != "127.0.0.1" || last.Details.EntityPath != "audited/page" ||
		!strings.HasPrefix(last.Details.TargetDetails, `project token `+itoa(token.ID)+` "ci"`) || !strings.Contains(last.Details.CustomMessage, "scopes read_api, role developer") {
		t.Errorf("the last event is %+v", last)
	}
	if strings.Contains(last.Details.CustomMessage, token.Token) {
		t.Error("the audit log holds a secret")
	}
	if got := events[1]; got.EventName != "project_edited" || !strings.Contains(got.Details.CustomMessage, `path "audited/site" to "audited/page"`) {
		t.Errorf("the event before it is %+v", got)
	}
	one, _, err := c.AuditEvents.GetProjectAuditEvent("audited/page", last.ID)
	must(t, err)
	if one.ID != last.ID {
		t.Errorf("GetProjectAuditEvent = %+v", one)
	}
	_, resp, err := c.AuditEvents.GetGroupAuditEvent("audited", last.ID)
	refused(t, "an event of another place", resp, err, http.StatusNotFound)
	ofGroup, _, err := c.AuditEvents.ListGroupAuditEvents("audited", nil)
	must(t, err)
	if len(ofGroup) != 1 || ofGroup[0].EventName != "group_created" || ofGroup[0].EntityType != "Group" {
		t.Errorf("ListGroupAuditEvents = %+v", ofGroup)
	}
	_, _, err = c.AuditEvents.GetGroupAuditEvent("audited", ofGroup[0].ID)
	must(t, err)
	_, _, err = c.AuditEvents.GetInstanceAuditEvent(last.ID)
	must(t, err)
	future := time.Now().Add(time.Hour)
	none, _, err := c.AuditEvents.ListInstanceAuditEvents(&gitlab.ListAuditEventsOptions{CreatedAfter: &future})
	must(t, err)
	if len(none) != 0 {
		t.Errorf("%d events of the future", len(none))
	}

	// All of them, by keyset and by pages.
	count := 0
	seen := map[int64]bool{}
	opts := &gitlab.ListAuditEventsOptions{ListOptions: gitlab.ListOptions{Pagination: "keyset", PerPage: 7}}
	events, err = gitlab.ScanAndCollect(func(p gitlab.PaginationOptionFunc) ([]*gitlab.AuditEvent, *gitlab.Response, error) {
		count++
		return c.AuditEvents.ListInstanceAuditEvents(opts, p)
	})
	must(t, err)
	for _, e := range events {
		seen[e.ID] = true
	}
	_, resp, err = c.AuditEvents.ListInstanceAuditEvents(&gitlab.ListAuditEventsOptions{ListOptions: gitlab.ListOptions{PerPage: 1}})
	must(t, err)
	if int64(len(seen)) != resp.TotalItems || len(seen) != len(events) || count < 2 {
		t.Errorf("got %d events, %d of them once, in %d pages, want %d", len(events), len(seen), count, resp.TotalItems)
	}

	dev := w.user("auditdev")
	_, err = w.forge.SetMember(t.Context(), w.root, forge.OnGroup(group), dev.ID, tidelock.Maintainer, time.Time{})
	must(t, err)
	asDev := w.clientWith(w.personal(dev, tidelock.ScopeReadAPI))
	_, _, err = asDev.AuditEvents.ListProjectAuditEvents("audited/page", nil)
	must(t, err)
	_, resp, err = asDev.AuditEvents.ListGroupAuditEvents("audited", nil)
	refused(t, "a maintainer of the group", resp, err, http.StatusForbidden)
	_, resp, err = asDev.AuditEvents.ListInstanceAuditEvents(nil)
	refused(t, "no administrator", resp, err, http.StatusForbidden)
}
