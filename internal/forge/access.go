package forge

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tidelock.dev"
)

// An Action is something a principal may or may not do. Each has one row in
// the table below, and nothing is decided anywhere else.
type Action string

const (
	// On a project.
	ReadProject      Action = "read project"
	ReadCode         Action = "read code"      // files, commits, branches by API
	PullCode         Action = "pull code"      // git fetch
	PushCode         Action = "push code"      // git push; each ref is decided by AuthorizePush
	WriteCode        Action = "write code"     // commits, branches and tags by API; each ref as in a push
	ReadHistory      Action = "read history"   // pushes
	ReadDelivery     Action = "read delivery"  // announcements: they name what is in clusters
	EditProject      Action = "edit project"   // name, description, visibility, default branch
	DeleteProject    Action = "delete project" // and archive
	ReadMembers      Action = "read members"
	ManageMembers    Action = "manage members"
	ReadProtected    Action = "read protected branches"
	Protect          Action = "protect branches"
	ReadTagRules     Action = "read protected tags"
	ProtectTags      Action = "protect tags"
	ReadAgents       Action = "read agents"
	ManageAgents     Action = "manage agents"
	ReadGrants       Action = "read agent grants"
	GrantAgents      Action = "grant agents"
	ReadTokens       Action = "read project tokens" // project access and deploy tokens
	ManageTokens     Action = "manage project tokens"
	ReadDeployKeys   Action = "read deploy keys"
	ManageDeployKeys Action = "manage deploy keys"
	ReadHooks        Action = "read hooks"
	ManageHooks      Action = "manage hooks" // and test them, and send again

	ReadIntegrations   Action = "read integrations"
	ManageIntegrations Action = "manage integrations"

	ReadVariables    Action = "read project variables"
	ManageVariables  Action = "manage project variables"
	ReadProjectAudit Action = "read project audit log"

	ReadStatuses       Action = "read statuses" // of commits
	PostStatus         Action = "post statuses"
	ReadPipelines      Action = "read pipelines"
	DeletePipeline     Action = "delete pipelines"
	ReadEnvironments   Action = "read environments"
	ManageEnvironments Action = "manage environments"
	ReadDeployments    Action = "read deployments"
	WriteDeployments   Action = "write deployments"
	DeleteDeployment   Action = "delete deployments"

	PullImage    Action = "pull images"
	PushImage    Action = "push images"
	DeleteImage  Action = "delete images"     // tags and artifacts, one by one
	DeleteTag    Action = "delete image tags" // the same by API
	ReadImages   Action = "read images"       // by API
	ManageImages Action = "manage images"     // remove whole ones, and the rules about them

	ReadReportRules   Action = "read report rules"
	ManageReportRules Action = "manage report rules"

	// On a group.
	ReadGroup          Action = "read group"
	CreateProject      Action = "create project"
	CreateSubgroup     Action = "create subgroup"
	EditGroup          Action = "edit group"
	DeleteGroup        Action = "delete group"
	ReadGroupMembers   Action = "read group members"
	ManageGroupMembers Action = "manage group members"
	ReadGroupTokens    Action = "read group deploy tokens"
	ReadGroupBots      Action = "read group access tokens"
	ManageGroupTokens  Action = "manage group tokens"

	ReadGroupDeployKeys   Action = "read group deploy keys"
	ManageGroupDeployKeys Action = "manage group deploy keys"

	ReadGroupVariables   Action = "read group variables"
	ManageGroupVariables Action = "manage group variables"
	ReadGroupAudit       Action = "read group audit log"

	// On the forge as a whole.
	Browse          Action = "list projects and groups" // those it may see
	ReadVersion     Action = "read version"
	ReadSigningKeys Action = "read signing keys"
	ReadSelf        Action = "read own user"
	ReadUsers       Action = "read users"
	CreateTopGroup  Action = "create top-level group"
	ReadOwnTokens   Action = "read own tokens"
	ManageOwnToken  Action = "manage own tokens"
	RevokeOwnToken  Action = "revoke own tokens"
	ReadOwnKeys     Action = "read own SSH keys"
	ManageOwnKeys   Action = "manage own SSH keys"
	RotateOwnToken  Action = "rotate own tokens"
	RotateSelf      Action = "rotate the token in use"
	Oversee         Action = "oversee"    // read what is everybody's
	Administer      Action = "administer" // and change it
)

// A Target is what an action is done to: a project, a group (or user
// namespace), or, when both are nil, the forge as a whole.
type Target struct {
	Project *tidelock.Project
	Group   *tidelock.Namespace
}

// OnProject is the target of an action on a project.
func OnProject(p tidelock.Project) Target { return Target{Project: &p} }

// OnGroup is the target of an action on a group or user namespace.
func OnGroup(n tidelock.Namespace) Target { return Target{Group: &n} }

// OnForge is the target of an action on the forge as a whole.
var OnForge = Target{}

type place int

const (
	onForge place = iota
	onProject
	onGroup
)

// A rule says who may do an action.
type rule struct {
	on place

	// member is the level from which members may; NoAccess means that being a
	// member is not enough. Administrators always may.
	member tidelock.AccessLevel
	// visible lets everyone who can see the target, by its visibility.
	visible bool
	// anyone lets everybody, signed in or not, and signedIn every user (on the
	// forge only); noBots leaves out bots.
	anyone, signedIn, noBots bool

	// scopes are those of which a user's token must carry one, and deploy
	// those of which a deploy token must; none means no deploy token may.
	scopes, deploy []tidelock.Scope

	// write is refused on archived projects.
	write bool

	// key lets SSH keys too: a person's as the person, and a deploy key where
	// it is enabled, but to write only if it may push there.
	key bool

	// agent lets the agents of clusters that the project may be told to.
	agent bool
}

var (
	apiRead   = []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeReadAPI}
	apiWrite  = []tidelock.Scope{tidelock.ScopeAPI}
	codeRead  = []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeReadAPI, tidelock.ScopeReadRepository}
	gitRead   = []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeReadRepository, tidelock.ScopeWriteRepository}
	gitWrite  = []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeWriteRepository}
	userRead  = []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeReadAPI, tidelock.ScopeReadUser}
	anyScope  = []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeReadAPI, tidelock.ScopeReadUser, tidelock.ScopeReadRepository, tidelock.ScopeWriteRepository, tidelock.ScopeReadRegistry, tidelock.ScopeWriteRegistry, tidelock.ScopeK8sProxy, tidelock.ScopeSelfRotate, tidelock.ScopeAdminMode, tidelock.ScopeSudo}
	gitDeploy = []tidelock.Scope{tidelock.ScopeReadRepository}

	imageRead   = []tidelock.Scope{tidelock.ScopeReadRegistry, tidelock.ScopeWriteRegistry, tidelock.ScopeAPI}
	imageWrite  = []tidelock.Scope{tidelock.ScopeWriteRegistry, tidelock.ScopeAPI}
	imageDeploy = []tidelock.Scope{tidelock.ScopeReadRegistry}
	imagePusher = []tidelock.Scope{tidelock.ScopeWriteRegistry}
)

var rules = map[Action]rule{
	ReadProject:      {on: onProject, member: tidelock.Guest, visible: true, scopes: apiRead},
	ReadCode:         {on: onProject, member: tidelock.Reporter, visible: true, scopes: codeRead},
	PullCode:         {on: onProject, member: tidelock.Reporter, visible: true, scopes: gitRead, deploy: gitDeploy, key: true},
	PushCode:         {on: onProject, member: tidelock.Developer, scopes: gitWrite, write: true, key: true},
	WriteCode:        {on: onProject, member: tidelock.Developer, scopes: apiWrite, write: true},
	ReadHistory:      {on: onProject, member: tidelock.Reporter, visible: true, scopes: apiRead},
	ReadDelivery:     {on: onProject, member: tidelock.Reporter, scopes: apiRead},
	EditProject:      {on: onProject, member: tidelock.Maintainer, scopes: apiWrite},
	DeleteProject:    {on: onProject, member: tidelock.Owner, scopes: apiWrite},
	ReadMembers:      {on: onProject, member: tidelock.Guest, visible: true, scopes: apiRead},
	ManageMembers:    {on: onProject, member: tidelock.Maintainer, scopes: apiWrite},
	ReadProtected:    {on: onProject, member: tidelock.Developer, scopes: apiRead},
	Protect:          {on: onProject, member: tidelock.Maintainer, scopes: apiWrite, write: true},
	ReadTagRules:     {on: onProject, member: tidelock.Maintainer, scopes: apiRead},
	ProtectTags:      {on: onProject, member: tidelock.Maintainer, scopes: apiWrite, write: true},
	ReadAgents:       {on: onProject, member: tidelock.Developer, scopes: apiRead},
	ManageAgents:     {on: onProject, member: tidelock.Maintainer, scopes: apiWrite},
	ReadGrants:       {on: onProject, member: tidelock.Maintainer, scopes: apiRead},
	GrantAgents:      {on: onProject, member: tidelock.Maintainer, scopes: apiWrite},
	ReadTokens:       {on: onProject, member: tidelock.Maintainer, scopes: apiRead},
	ManageTokens:     {on: onProject, member: tidelock.Maintainer, scopes: apiWrite},
	ReadDeployKeys:   {on: onProject, member: tidelock.Maintainer, scopes: apiRead},
	ManageDeployKeys: {on: onProject, member: tidelock.Maintainer, scopes: apiWrite},
	ReadHooks:        {on: onProject, member: tidelock.Maintainer, scopes: apiRead},
	ManageHooks:      {on: onProject, member: tidelock.Maintainer, scopes: apiWrite},

	ReadIntegrations:   {on: onProject, member: tidelock.Maintainer, scopes: apiRead},
	ManageIntegrations: {on: onProject, member: tidelock.Maintainer, scopes: apiWrite},

	// A deploy token with api may do this and nothing else; GitLab promises it
	// and does not do it.
	ReadStatuses: {on: onProject, member: tidelock.Reporter, visible: true, scopes: apiRead, deploy: apiWrite},
	PostStatus:   {on: onProject, member: tidelock.Developer, scopes: apiWrite, deploy: apiWrite, write: true},

	ReadPipelines:      {on: onProject, member: tidelock.Reporter, visible: true, scopes: apiRead},
	DeletePipeline:     {on: onProject, member: tidelock.Owner, scopes: apiWrite, write: true},
	ReadEnvironments:   {on: onProject, member: tidelock.Reporter, visible: true, scopes: apiRead},
	ManageEnvironments: {on: onProject, member: tidelock.Developer, scopes: apiWrite, write: true},
	ReadDeployments:    {on: onProject, member: tidelock.Reporter, visible: true, scopes: apiRead},
	WriteDeployments:   {on: onProject, member: tidelock.Developer, scopes: apiWrite, write: true},
	DeleteDeployment:   {on: onProject, member: tidelock.Maintainer, scopes: apiWrite, write: true},

	PullImage:    {on: onProject, member: tidelock.Reporter, visible: true, scopes: imageRead, deploy: imageDeploy, agent: true},
	PushImage:    {on: onProject, member: tidelock.Developer, scopes: imageWrite, deploy: imagePusher, write: true},
	DeleteImage:  {on: onProject, member: tidelock.Developer, scopes: imageWrite, write: true},
	DeleteTag:    {on: onProject, member: tidelock.Developer, scopes: apiWrite, write: true},
	ReadImages:   {on: onProject, member: tidelock.Reporter, visible: true, scopes: apiRead},
	ManageImages: {on: onProject, member: tidelock.Maintainer, scopes: apiWrite, write: true},

	ReadReportRules:   {on: onProject, member: tidelock.Reporter, scopes: apiRead},
	ManageReportRules: {on: onProject, member: tidelock.Maintainer, scopes: apiWrite, write: true},

	ReadGroup:          {on: onGroup, member: tidelock.Guest, visible: true, scopes: apiRead},
	CreateProject:      {on: onGroup, member: tidelock.Developer, scopes: apiWrite},
	CreateSubgroup:     {on: onGroup, member: tidelock.Maintainer, scopes: apiWrite},
	EditGroup:          {on: onGroup, member: tidelock.Owner, scopes: apiWrite},
	DeleteGroup:        {on: onGroup, member: tidelock.Owner, scopes: apiWrite},
	ReadGroupMembers:   {on: onGroup, member: tidelock.Guest, visible: true, scopes: apiRead},
	ManageGroupMembers: {on: onGroup, member: tidelock.Owner, scopes: apiWrite},
	ReadGroupTokens:    {on: onGroup, member: tidelock.Maintainer, scopes: apiRead},
	ReadGroupBots:      {on: onGroup, member: tidelock.Owner, scopes: apiRead},
	ManageGroupTokens:  {on: onGroup, member: tidelock.Owner, scopes: apiWrite},

	ReadVariables:    {on: onProject, member: tidelock.Maintainer, scopes: apiRead},
	ManageVariables:  {on: onProject, member: tidelock.Maintainer, scopes: apiWrite},
	ReadProjectAudit: {on: onProject, member: tidelock.Maintainer, scopes: apiRead},

	ReadGroupDeployKeys:   {on: onGroup, member: tidelock.Maintainer, scopes: apiRead},
	ManageGroupDeployKeys: {on: onGroup, member: tidelock.Owner, scopes: apiWrite},

	ReadGroupVariables:   {on: onGroup, member: tidelock.Owner, scopes: apiRead},
	ManageGroupVariables: {on: onGroup, member: tidelock.Owner, scopes: apiWrite},
	ReadGroupAudit:       {on: onGroup, member: tidelock.Owner, scopes: apiRead},

	Browse:          {on: onForge, anyone: true, scopes: apiRead},
	ReadVersion:     {on: onForge, signedIn: true, scopes: userRead},
	ReadSigningKeys: {on: onForge, anyone: true, scopes: anyScope},
	ReadSelf:        {on: onForge, signedIn: true, scopes: userRead},
	ReadUsers:       {on: onForge, signedIn: true, scopes: userRead},
	CreateTopGroup:  {on: onForge, signedIn: true, noBots: true, scopes: apiWrite},
	ReadOwnTokens:   {on: onForge, signedIn: true, scopes: apiRead},
	ManageOwnToken:  {on: onForge, signedIn: true, noBots: true, scopes: []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeK8sProxy}},
	RevokeOwnToken:  {on: onForge, signedIn: true, noBots: true, scopes: apiWrite},
	ReadOwnKeys:     {on: onForge, signedIn: true, scopes: userRead},
	ManageOwnKeys:   {on: onForge, signedIn: true, noBots: true, scopes: apiWrite},
	Oversee:         {on: onForge, scopes: apiRead},
	RotateOwnToken:  {on: onForge, signedIn: true, noBots: true, scopes: apiWrite},
	RotateSelf:      {on: onForge, signedIn: true, scopes: []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeSelfRotate}},
	Administer:      {on: onForge, scopes: apiWrite},
}

// A ScopeError says that a token lacks every scope that would do.
type ScopeError struct {
	Action Action
	Need   []tidelock.Scope
}

func (e *ScopeError) Error() string {
	if len(e.Need) == 0 {
		return fmt.Sprintf("this kind of token cannot %s", e.Action)
	}
	words := make([]string, len(e.Need))
	for i, s := range e.Need {
		words[i] = string(s)
	}
	return fmt.Sprintf("the token cannot %s: it needs one of the scopes %s", e.Action, strings.Join(words, ", "))
}

// Unwrap gives the error its kind.
func (e *ScopeError) Unwrap() error { return tidelock.Errorf(tidelock.Denied, "%s", e.Error()) }

// Allow reports whether a principal may do an action, as nil or an error:
// NotFound when it may not even see the target, a *ScopeError (of kind Denied)
// when its token lacks a scope, Unauthenticated when signing in might help, and
// Denied otherwise.
func (f *Forge) Allow(ctx context.Context, p Principal, a Action, t Target) error {
	r, ok := rules[a]
	if !ok || r.on != t.place() {
		return fmt.Errorf("no rule for %q on %s", a, t)
	}
	if r.on == onForge {
		if p.Key != nil {
			return errNotByKey(a)
		}
		return allowOnForge(p, a, r)
	}

	level, err := f.level(ctx, p, t)
	if err != nil {
		return err
	}
	deploys, err := f.deploysTo(ctx, p, t)
	if err != nil {
		return err
	}
	pulls, pushes, err := f.keyRights(ctx, p, t)
	if err != nil {
		return err
	}
	served, err := f.serves(ctx, p, t)
	if err != nil {
		return err
	}
	open := t.visibleTo(p)
	if !open && !deploys && !pulls && !served && level == tidelock.NoAccess && !p.admin() {
		return t.notFound()
	}
	if p.Token != nil {
		need := r.scopes
		if p.User == nil {
			need = r.deploy
		}
		if !p.Token.Has(need...) {
			return &ScopeError{Action: a, Need: need}
		}
	}
	if p.Key != nil && !r.key {
		return errNotByKey(a)
	}
	switch {
	case p.admin(), deploys, r.agent && served, r.visible && open, r.member != tidelock.NoAccess && level >= r.member:
	case pushes, pulls && !r.write:
	case pulls:
		return tidelock.Errorf(tidelock.Denied, "this deploy key may only read %s", t)
	case p.Agent != nil:
		return tidelock.Errorf(tidelock.Denied, "an agent may not %s", a)
	case p.Anonymous():
		return tidelock.Errorf(tidelock.Unauthenticated, "sign in to %s of %s", a, t)
	default:
		return tidelock.Errorf(tidelock.Denied, "you may not %s of %s: it needs the role %s", a, t, r.member)
	}
	if r.write && t.Project != nil && t.Project.Archived {
		return tidelock.Errorf(tidelock.Denied, "%s is archived: it can only be read", t)
	}
	return nil
}

func allowOnForge(p Principal, a Action, r rule) error {
	if p.User == nil {
		if p.Token != nil {
			return &ScopeError{Action: a, Need: r.deploy}
		}
		if r.anyone {
			return nil
		}
		return tidelock.Errorf(tidelock.Unauthenticated, "sign in to %s", a)
	}
	if p.Token != nil && !p.Token.Has(r.scopes...) {
		return &ScopeError{Action: a, Need: r.scopes}
	}
	if r.anyone || p.User.Admin || (r.signedIn && !(r.noBots && p.User.Bot)) {
		return nil
	}
	return tidelock.Errorf(tidelock.Denied, "you may not %s", a)
}

// level is the access level that a principal has as a member of a target.
func (f *Forge) level(ctx context.Context, p Principal, t Target) (tidelock.AccessLevel, error) {
	if p.User == nil {
		return tidelock.NoAccess, nil
	}
	level, err := f.store.AccessLevel(ctx, p.User.ID, t.holder(), f.now())
	if err != nil {
		return tidelock.NoAccess, fmt.Errorf("read the access level of user %d: %w", p.User.ID, err)
	}
	return level, nil
}

// deploysTo reports whether a principal is a deploy token made for the target
// or for a group above it.
func (f *Forge) deploysTo(ctx context.Context, p Principal, t Target) (bool, error) {
	if p.User != nil || p.Token == nil {
		return false, nil
	}
	switch h := p.Token.Holder; {
	case h.Project != 0:
		return t.Project != nil && t.Project.ID == h.Project, nil
	case h.Namespace != 0:
		group, err := f.store.Namespace(ctx, h.Namespace)
		if err != nil {
			return false, fmt.Errorf("read the group of token %d: %w", p.Token.ID, err)
		}
		return isBelow(t.fullPath(), group.FullPath), nil
	}
	return false, nil
}

// keyRights says what a principal that is a deploy key may do in a target.
func (f *Forge) keyRights(ctx context.Context, p Principal, t Target) (pull, push bool, err error) {
	if p.User != nil || p.Key == nil {
		return false, false, nil
	}
	pull, push, err = f.store.KeyRights(ctx, p.Key.ID, t.holder())
	if err != nil {
		return false, false, fmt.Errorf("read the rights of key %d: %w", p.Key.ID, err)
	}
	return pull, push, nil
}

// serves reports whether a principal is the agent of a cluster that may be told
// of the target.
func (f *Forge) serves(ctx context.Context, p Principal, t Target) (bool, error) {
	if p.Agent == nil || t.Project == nil {
		return false, nil
	}
	served, err := f.AgentMayServe(ctx, *p.Agent, *t.Project)
	if err != nil {
		return false, fmt.Errorf("read the grants of agent %d: %w", p.Agent.ID, err)
	}
	return served, nil
}

func errNotByKey(a Action) error {
	return tidelock.Errorf(tidelock.Denied, "an SSH key cannot %s", a)
}

// isBelow reports whether a full path is under (or is) another one.
func isBelow(path, above string) bool {
	path, above = strings.ToLower(path), strings.ToLower(above)
	return path == above || strings.HasPrefix(path, above+"/")
}

func (t Target) place() place {
	switch {
	case t.Project != nil:
		return onProject
	case t.Group != nil:
		return onGroup
	}
	return onForge
}

func (t Target) holder() tidelock.Holder {
	if t.Project != nil {
		return tidelock.Holder{Project: t.Project.ID}
	}
	return tidelock.Holder{Namespace: t.Group.ID}
}

func (t Target) fullPath() string {
	switch t.place() {
	case onProject:
		return t.Project.FullPath
	case onGroup:
		return t.Group.FullPath
	}
	return ""
}

// visibleTo reports whether the target's own visibility shows it.
func (t Target) visibleTo(p Principal) bool {
	v := tidelock.Private
	switch t.place() {
	case onProject:
		v = t.Project.Visibility
	case onGroup:
		v = t.Group.Visibility
	}
	return v == tidelock.Public || (v == tidelock.InternalOnly && p.User != nil)
}

func (t Target) notFound() error {
	if t.Project != nil {
		return errNoProject()
	}
	return errNoGroup()
}

func (t Target) String() string {
	switch t.place() {
	case onProject:
		return fmt.Sprintf("project %s", t.Project.FullPath)
	case onGroup:
		return fmt.Sprintf("%s %s", t.Group.Kind, t.Group.FullPath)
	}
	return "the forge"
}

func errNoProject() error { return tidelock.Errorf(tidelock.NotFound, "Project Not Found") }
func errNoGroup() error   { return tidelock.Errorf(tidelock.NotFound, "Group Not Found") }

// unseen reports whether an error says that the caller may not see something:
// where it is one of many, it is left out.
func unseen(err error) bool {
	switch tidelock.KindOf(err) {
	case tidelock.NotFound, tidelock.Denied, tidelock.Unauthenticated:
		return true
	}
	return false
}

// Viewer is for whom lists are made when a principal asks: nil sees all.
func (p Principal) Viewer() *tidelock.Viewer {
	switch {
	case p.admin():
		return nil
	case p.User != nil:
		return &tidelock.Viewer{User: p.User.ID}
	}
	return &tidelock.Viewer{}
}

// Actions lists every action there is a rule for, in order of name.
func Actions() []Action {
	list := make([]Action, 0, len(rules))
	for a := range rules {
		list = append(list, a)
	}
	slices.Sort(list)
	return list
}
