package forge_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// accessTable is written by hand from GitLab's permissions. The first five
// columns are what an anonymous caller and a signed-in stranger get on a public
// target, then members by role on a private one: y, or the status that GitLab
// would answer. Then the scopes of which a user's token needs one, and those
// that open it to a deploy token. On a private target an anonymous caller and a
// stranger always get 404.
const accessTable = `
action                    | anon | stranger | guest | reporter | developer | maintainer | owner | scopes                                          | deploy
read project              | y    | y        | y     | y        | y         | y          | y     | api read_api                                    |
read code                 | y    | y        | 403   | y        | y         | y          | y     | api read_api read_repository                    |
pull code                 | y    | y        | 403   | y        | y         | y          | y     | api read_repository write_repository            | read_repository
push code                 | 401  | 403      | 403   | 403      | y         | y          | y     | api write_repository                            |
write code                | 401  | 403      | 403   | 403      | y         | y          | y     | api                                             |
read history              | y    | y        | 403   | y        | y         | y          | y     | api read_api                                    |
read delivery             | 401  | 403      | 403   | y        | y         | y          | y     | api read_api                                    |
edit project              | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
delete project            | 401  | 403      | 403   | 403      | 403       | 403        | y     | api                                             |
read members              | y    | y        | y     | y        | y         | y          | y     | api read_api                                    |
manage members            | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read protected branches   | 401  | 403      | 403   | 403      | y         | y          | y     | api read_api                                    |
protect branches          | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read protected tags       | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
protect tags              | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read agents               | 401  | 403      | 403   | 403      | y         | y          | y     | api read_api                                    |
manage agents             | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read agent grants         | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
grant agents              | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read project tokens       | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
manage project tokens     | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read hooks                | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
manage hooks              | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read integrations         | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
manage integrations       | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read statuses             | y    | y        | 403   | y        | y         | y          | y     | api read_api                                    | api
post statuses             | 401  | 403      | 403   | 403      | y         | y          | y     | api                                             | api
read pipelines            | y    | y        | 403   | y        | y         | y          | y     | api read_api                                    |
delete pipelines          | 401  | 403      | 403   | 403      | 403       | 403        | y     | api                                             |
read environments         | y    | y        | 403   | y        | y         | y          | y     | api read_api                                    |
manage environments       | 401  | 403      | 403   | 403      | y         | y          | y     | api                                             |
read deployments          | y    | y        | 403   | y        | y         | y          | y     | api read_api                                    |
write deployments         | 401  | 403      | 403   | 403      | y         | y          | y     | api                                             |
delete deployments        | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
pull images               | y    | y        | 403   | y        | y         | y          | y     | api read_registry write_registry                | read_registry
push images               | 401  | 403      | 403   | 403      | y         | y          | y     | api write_registry                              | write_registry
delete images             | 401  | 403      | 403   | 403      | y         | y          | y     | api write_registry                              |
delete image tags         | 401  | 403      | 403   | 403      | y         | y          | y     | api                                             |
read images               | y    | y        | 403   | y        | y         | y          | y     | api read_api                                    |
manage images             | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read report rules         | 401  | 403      | 403   | y        | y         | y          | y     | api read_api                                    |
manage report rules       | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read deploy keys          | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
manage deploy keys        | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read group deploy keys    | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
manage group deploy keys  | 401  | 403      | 403   | 403      | 403       | 403        | y     | api                                             |
read own SSH keys         | 401  | y        | y     | y        | y         | y          | y     | api read_api read_user                          |
manage own SSH keys       | 401  | y        | y     | y        | y         | y          | y     | api                                             |
read group                | y    | y        | y     | y        | y         | y          | y     | api read_api                                    |
create project            | 401  | 403      | 403   | 403      | y         | y          | y     | api                                             |
create subgroup           | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
edit group                | 401  | 403      | 403   | 403      | 403       | 403        | y     | api                                             |
delete group              | 401  | 403      | 403   | 403      | 403       | 403        | y     | api                                             |
read group members        | y    | y        | y     | y        | y         | y          | y     | api read_api                                    |
manage group members      | 401  | 403      | 403   | 403      | 403       | 403        | y     | api                                             |
read group deploy tokens  | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
read group access tokens  | 401  | 403      | 403   | 403      | 403       | 403        | y     | api read_api                                    |
manage group tokens       | 401  | 403      | 403   | 403      | 403       | 403        | y     | api                                             |
list projects and groups  | y    | y        | y     | y        | y         | y          | y     | api read_api                                    |
read version              | 401  | y        | y     | y        | y         | y          | y     | api read_api read_user                          |
read signing keys         | y    | y        | y     | y        | y         | y          | y     | api read_api read_user read_repository write_repository read_registry write_registry k8s_proxy self_rotate |
read own user             | 401  | y        | y     | y        | y         | y          | y     | api read_api read_user                          |
read users                | 401  | y        | y     | y        | y         | y          | y     | api read_api read_user                          |
create top-level group    | 401  | y        | y     | y        | y         | y          | y     | api                                             |
read own tokens           | 401  | y        | y     | y        | y         | y          | y     | api read_api                                    |
manage own tokens         | 401  | y        | y     | y        | y         | y          | y     | api k8s_proxy                                   |
revoke own tokens         | 401  | y        | y     | y        | y         | y          | y     | api                                             |
oversee                   | 401  | 403      | 403   | 403      | 403       | 403        | 403   | api read_api                                    |
read project variables    | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
manage project variables  | 401  | 403      | 403   | 403      | 403       | y          | y     | api                                             |
read project audit log    | 401  | 403      | 403   | 403      | 403       | y          | y     | api read_api                                    |
read group variables      | 401  | 403      | 403   | 403      | 403       | 403        | y     | api read_api                                    |
manage group variables    | 401  | 403      | 403   | 403      | 403       | 403        | y     | api                                             |
read group audit log      | 401  | 403      | 403   | 403      | 403       | 403        | y     | api read_api                                    |
rotate own tokens         | 401  | y        | y     | y        | y         | y          | y     | api                                             |
rotate the token in use   | 401  | y        | y     | y        | y         | y          | y     | api self_rotate                                 |
administer                | 401  | 403      | 403   | 403      | 403       | 403        | 403   | api                                             |
`

var allScopes = []tidelock.Scope{
	tidelock.ScopeAPI, tidelock.ScopeReadAPI, tidelock.ScopeReadUser, tidelock.ScopeReadRepository,
	tidelock.ScopeWriteRepository, tidelock.ScopeReadRegistry, tidelock.ScopeWriteRegistry,
	tidelock.ScopeK8sProxy, tidelock.ScopeSelfRotate,
}

type accessRow struct {
	action         forge.Action
	anon, stranger string
	byRole         map[tidelock.AccessLevel]string
	scopes, deploy []tidelock.Scope
}

var roles = []tidelock.AccessLevel{tidelock.Guest, tidelock.Reporter, tidelock.Developer, tidelock.Maintainer, tidelock.Owner}

func readAccessTable(t *testing.T) []accessRow {
	var rows []accessRow
	for i, line := range strings.Split(strings.TrimSpace(accessTable), "\n") {
		cells := strings.Split(line, "|")
		if i == 0 {
			continue
		}
		if len(cells) != 10 {
			t.Fatalf("row %q has %d cells", line, len(cells))
		}
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		row := accessRow{action: forge.Action(cells[0]), anon: cells[1], stranger: cells[2], byRole: map[tidelock.AccessLevel]string{}}
		for j, role := range roles {
			row.byRole[role] = cells[3+j]
		}
		for _, s := range strings.Fields(cells[8]) {
			row.scopes = append(row.scopes, tidelock.Scope(s))
		}
		for _, s := range strings.Fields(cells[9]) {
			row.deploy = append(row.deploy, tidelock.Scope(s))
		}
		rows = append(rows, row)
	}
	return rows
}

// answer is what GitLab would answer for an error of Allow.
func answer(err error) string {
	var scope *forge.ScopeError
	switch {
	case err == nil:
		return "y"
	case errors.As(err, &scope):
		return "scope"
	}
	switch tidelock.KindOf(err) {
	case tidelock.Unauthenticated:
		return "401"
	case tidelock.Denied:
		return "403"
	case tidelock.NotFound:
		return "404"
	}
	return err.Error()
}

// TestAccess holds every cell of the table against the rules: each action, by
// each role, with each scope alone, on public and private targets.
func TestAccess(t *testing.T) {
	w := newWorld(t)
	rows := readAccessTable(t)
	covered := map[forge.Action]bool{}
	for _, row := range rows {
		covered[row.action] = true
	}
	for _, a := range forge.Actions() {
		if !covered[a] {
			t.Errorf("action %q has no row in the table", a)
		}
	}

	public := w.group("open", tidelock.Public)
	private := w.group("closed", tidelock.Private)
	openProject := w.project(public, "site", tidelock.Public)
	closedProject := w.project(private, "site", tidelock.Private)
	stranger := w.user("stranger")
	members := map[tidelock.AccessLevel]tidelock.User{}
	for _, role := range roles {
		members[role] = w.user(strings.ReplaceAll(role.String(), " ", "-"))
		w.member(forge.OnGroup(private), members[role], role)
	}

	cells := 0
	expect := func(what string, got error, want string) {
		t.Helper()
		cells++
		if a := answer(got); a != want {
			t.Errorf("%s: got %s (%v), want %s", what, a, got, want)
		}
	}
	for _, row := range rows {
		open, closed := forge.OnProject(openProject), forge.OnProject(closedProject)
		switch {
		case slices.Contains(onGroups, row.action):
			open, closed = forge.OnGroup(public), forge.OnGroup(private)
		case slices.Contains(onForge, row.action):
			open, closed = forge.OnForge, forge.OnForge
		}
		hidden := "404"
		if open == forge.OnForge {
			hidden = row.anon
		}
		name := string(row.action)
		expect(name+" by anonymous, public", w.Allow(t.Context(), forge.Principal{}, row.action, open), row.anon)
		expect(name+" by a stranger, public", w.Allow(t.Context(), as(stranger), row.action, open), row.stranger)
		expect(name+" by anonymous, private", w.Allow(t.Context(), forge.Principal{}, row.action, closed), hidden)
		if open != forge.OnForge {
			expect(name+" by a stranger, private", w.Allow(t.Context(), as(stranger), row.action, closed), "404")
		}
		for _, role := range roles {
			expect(name+" by "+role.String(), w.Allow(t.Context(), as(members[role]), row.action, closed), row.byRole[role])
			for _, scope := range allScopes {
				want := "scope"
				if slices.Contains(row.scopes, scope) {
					want = row.byRole[role]
				}
				expect(name+" by "+role.String()+" with "+string(scope),
					w.Allow(t.Context(), withScope(members[role], scope), row.action, closed), want)
			}
		}
		for _, scope := range allScopes {
			token := tidelock.Token{Kind: tidelock.DeployToken, Holder: tidelock.Holder{Namespace: private.ID}, Scopes: []tidelock.Scope{scope}}
			want := "scope"
			if slices.Contains(row.deploy, scope) {
				want = "y"
			}
			expect(name+" by a deploy token with "+string(scope), w.Allow(t.Context(), forge.Principal{Token: &token}, row.action, closed), want)
		}
	}
	t.Logf("%d cells", cells)
}

var onGroups = []forge.Action{
	forge.ReadGroupDeployKeys, forge.ManageGroupDeployKeys,
	forge.ReadGroup, forge.CreateProject, forge.CreateSubgroup, forge.EditGroup, forge.DeleteGroup,
	forge.ReadGroupMembers, forge.ManageGroupMembers, forge.ReadGroupTokens, forge.ReadGroupBots, forge.ManageGroupTokens,
	forge.ReadGroupVariables, forge.ManageGroupVariables, forge.ReadGroupAudit,
}

var onForge = []forge.Action{
	forge.ReadSigningKeys,
	forge.ReadOwnKeys, forge.ManageOwnKeys,
	forge.Browse, forge.ReadVersion, forge.ReadSelf, forge.ReadUsers, forge.CreateTopGroup, forge.ReadOwnTokens,
	forge.ManageOwnToken, forge.RevokeOwnToken, forge.Oversee, forge.Administer,
	forge.RotateOwnToken, forge.RotateSelf,
}

func as(u tidelock.User) forge.Principal { return forge.Principal{User: &u} }

func withScope(u tidelock.User, s tidelock.Scope) forge.Principal {
	return forge.Principal{User: &u, Token: &tidelock.Token{Kind: tidelock.PersonalToken, User: u.ID, Scopes: []tidelock.Scope{s}}}
}

// A deploy token of another project must not even see this one.
func TestDeployTokenElsewhere(t *testing.T) {
	w := newWorld(t)
	group := w.group("team", tidelock.Private)
	site, shop := w.project(group, "site", tidelock.Private), w.project(group, "shop", tidelock.Private)
	token := tidelock.Token{Kind: tidelock.DeployToken, Holder: tidelock.Holder{Project: shop.ID}, Scopes: []tidelock.Scope{tidelock.ScopeReadRepository}}
	p := forge.Principal{Token: &token}
	if got := answer(w.Allow(t.Context(), p, forge.PullCode, forge.OnProject(site))); got != "404" {
		t.Errorf("pull by another project's deploy token: got %s, want 404", got)
	}
	if got := answer(w.Allow(t.Context(), p, forge.PullCode, forge.OnProject(shop))); got != "y" {
		t.Errorf("pull by its own deploy token: got %s, want y", got)
	}
}

func TestExpiredAndBlocked(t *testing.T) {
	w := newWorld(t)
	user := w.user("ada")
	_, secret, err := w.CreatePersonalToken(t.Context(), as(user), user.ID, forge.NewToken{
		Name: "short", Scopes: []tidelock.Scope{tidelock.ScopeReadAPI}, ExpiresAt: w.clock.Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.Authenticate(t.Context(), secret)
	if err != nil || p.User.ID != user.ID {
		t.Fatalf("a fresh token: got %v, %v", p.User, err)
	}
	w.clock = w.clock.Add(2 * time.Hour)
	if _, err := w.Authenticate(t.Context(), secret); tidelock.KindOf(err) != tidelock.Unauthenticated {
		t.Errorf("an expired token: got %v, want unauthenticated", err)
	}
	for _, wrong := range []string{"", "glpat-", "glpat-wrong", secret.Reveal() + "x", "gldt-" + secret.Reveal(), "glagent-x"} {
		if _, err := w.Authenticate(t.Context(), tidelock.NewSecret(wrong)); tidelock.KindOf(err) != tidelock.Unauthenticated {
			t.Errorf("token %q: got %v, want unauthenticated", wrong, err)
		}
	}
}

// A token cannot make a stronger one.
func TestTokensDoNotEscalate(t *testing.T) {
	w := newWorld(t)
	user := w.user("ada")
	weak := withScope(user, tidelock.ScopeK8sProxy)
	_, _, err := w.CreatePersonalToken(t.Context(), weak, user.ID, forge.NewToken{Name: "more", Scopes: []tidelock.Scope{tidelock.ScopeAPI}})
	if answer(err) != "scope" {
		t.Errorf("k8s_proxy making api: got %v, want a scope error", err)
	}
	group := w.group("team", tidelock.Private)
	w.member(forge.OnGroup(group), user, tidelock.Maintainer)
	project := w.project(group, "site", tidelock.Private)
	_, _, err = w.CreateAccessToken(t.Context(), as(user), forge.OnProject(project), forge.NewToken{Name: "bot", Scopes: []tidelock.Scope{tidelock.ScopeAPI}, Level: tidelock.Owner})
	if answer(err) != "403" {
		t.Errorf("a maintainer making an owner's token: got %v, want denied", err)
	}
}
