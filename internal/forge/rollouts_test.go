package forge_test

import (
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// rolloutTests are stories of one applier. A line does something, or begins
// with "=" and says what rollouts there are then: the commits in order of
// turn, each with its state, "*" for the newest and, of its message, a part.
var rolloutTests = []struct{ name, story string }{
	{"a good commit", `
		push A
		= A pending*
		fetched A
		= A running*
		sees attempted=A state=progressing message=applying
		= A running* applying
		sees applied=A state=ready health=healthy message=Applied
		= A success* Applied`},

	{"one seen before it was planned", `
		land A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		plan
		= A success*`},

	{"a commit from before the agent was there", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"what is done stays so while it is looked at again", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		sees state=progressing
		= A success*
		sees state=unknown
		= A success*
		sees state=blocked message=waits
		= A success*
		sees state=ready health=progressing
		= A success*
		sees state=ready health=healthy
		= A success*`},

	{"a failure of the newer one while the older one is live", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		push B
		= A success, B pending*
		fetched B
		= A success, B running*
		sees attempted=B state=failed message=no:such:kind
		= A success, B failed* no:such:kind`},

	{"a failure before the applier looked at the newer one", `
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		push B
		fetched B
		sees state=stalled message=access:denied
		= A success, B failed* access:denied`},

	{"a late failure of the older one is not one of the newer one", `
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		push B
		sees state=failed message=webhook:down
		= A success, B pending*
		fetched B
		= A success, B running*
		sees attempted=B applied=B state=ready message=ok
		= A success, B success*`},

	{"a failure of the older one is not one of the newer one", `
		push A
		fetched A
		sees attempted=A state=failed message=boom
		= A failed* boom
		push B
		fetched B
		sees state=failed message=boom
		= A failed boom, B running*
		sees attempted=B applied=B state=ready message=ok
		= A failed boom, B success*`},

	{"repaired by trying again", `
		push A
		sees attempted=A state=failed message=boom
		= A failed* boom
		sees state=progressing message=again
		= A failed* boom
		sees applied=A state=ready health=healthy
		= A success*`},

	{"a later failure of the same commit, and its repair", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		= A success*
		sees state=failed message=webhook:down
		= A failed* webhook:down
		sees state=ready message=
		= A success*`},

	{"an older commit is frozen", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		push B
		sees attempted=B applied=B state=ready health=healthy
		sees attempted=A applied=A state=failed message=late
		= A success, B success*`},

	{"pushes that come at once", `
		land A
		land B
		land C
		plan
		= A superseded superseded by C, B superseded, C pending*
		plan
		= A superseded, B superseded, C pending*
		sees attempted=C applied=C state=ready health=healthy
		= A superseded, B superseded, C success*`},

	{"one that was applied although a newer one was there", `
		land A
		land B
		plan
		= A superseded, B pending*
		sees attempted=A state=progressing
		= A superseded, B pending*
		sees applied=A state=ready health=healthy
		= A success, B pending*
		sees attempted=B state=progressing outcomes=B:progressing,A:ready
		= A success, B running*`},

	{"one that is overtaken while it runs", `
		push A
		sees attempted=A state=progressing
		push B
		= A running, B pending*
		sees attempted=B state=progressing outcomes=B:progressing,A:progressing
		= A superseded superseded by B, B running*`},

	{"revisions that came and went while nobody listened", `
		land A
		land B
		land C
		sees attempted=C applied=C state=ready health=healthy outcomes=C:ready,B:failed:boom,A:ready
		plan
		= A success, B failed boom, C success*`},

	{"back to an older commit by force", `
		push A
		sees attempted=A applied=A state=ready health=healthy outcomes=A:ready
		push B
		sees attempted=B applied=B state=ready health=healthy outcomes=B:ready,A:ready
		= A success, B success*
		force A
		= B success, A pending*
		fetched A
		= B success, A running*
		sees attempted=A applied=A state=ready outcomes=A:ready,B:ready
		= B success, A success*`},

	{"back before it was noticed", `
		push A
		sees attempted=A applied=A state=ready health=healthy outcomes=A:ready
		land B
		force A
		plan
		= B superseded, A success*`},

	{"an older time does not count for a commit that came again", `
		push A
		sees attempted=A applied=A state=ready health=healthy outcomes=A:ready
		push B
		sees attempted=B applied=B state=ready health=healthy outcomes=B:ready,A:ready
		force A
		push C
		sees attempted=C applied=C state=ready health=healthy outcomes=C:ready,B:ready,A:ready
		= B success, A superseded, C success*`},

	{"a branch that is deleted", `
		follow branch=next
		push A refs/heads/next
		= A pending*
		delete refs/heads/next
		= A superseded* was removed`},

	{"a branch that is deleted when Flux has the commit", `
		follow branch=next
		push A refs/heads/next
		fetched A
		delete refs/heads/next
		= A running*
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"other branches do not matter", `
		push A refs/heads/other
		push B
		= B pending*`},

	{"a tag", `
		follow tag=live
		push A
		=
		push B refs/tags/live
		= B pending*`},

	{"versions", `
		follow semver=>=1.0.0 <2
		push A refs/tags/v1.0.0
		= A pending*
		land B refs/tags/v1.1.0
		land C refs/tags/v0.9.0
		land D refs/tags/v2.0.0
		land E refs/tags/v1.0.5
		land F refs/tags/v1.2.0
		plan
		= A superseded, B superseded, F pending*`},

	{"a fixed commit", `
		push A
		push A2 refs/heads/keep
		push B
		sees attempted=B applied=B state=ready health=healthy
		follow commit=A2
		plan
		= A superseded, B success, A2 pending*
		push C
		= A superseded, B success, A2 pending*
		sees attempted=A2 applied=A2 state=ready health=healthy
		= A superseded, B success, A2 success*`},

	{"another branch is followed", `
		push A refs/heads/next
		push B
		sees attempted=B applied=B state=ready health=healthy
		= B success*
		follow branch=next
		plan
		= B success, A pending*`},

	{"a commit that the project does not have", `
		push A
		fetched X
		sees attempted=X applied=X state=ready health=healthy
		= A pending*`},

	{"revisions that are none", `
		push A
		sees attempted=raw:main@sha1:xyz applied=raw:../../etc state=ready health=healthy
		= A pending*`},

	{"suspended", `
		push A
		sees suspended=yes state=ready
		= A pending* Kustomization/flux-system/apps is suspended
		fetched A
		= A running* is suspended
		sees suspended=no attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"a suspended source", `
		fetched suspended=yes
		push A
		= A pending* GitRepository/flux-system/site is suspended`},

	{"a dependency that is not ready", `
		push A
		fetched A
		sees state=blocked message=dependency:not:ready
		= A running* dependency:not:ready
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"a dependency that is not there", `
		push A
		fetched A
		sees state=blocked lacks=shop/nobody
		= A failed* dependency 'shop/nobody' not found
		sees state=blocked message=dependency:not:ready
		= A running* dependency:not:ready
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"a source that cannot fetch", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		push B
		announce B failed authentication:required
		= A success, B failed* GitRepository/flux-system/site: authentication:required
		announce B converged
		fetched B
		= A success, B running*`},

	{"a source that says that it cannot fetch", `
		push A
		wait 1s
		fetched state=failed message=no:route
		= A failed* no:route`},

	{"a source that had failed before", `
		fetched state=failed message=no:route
		wait 1s
		push A
		= A pending*
		wait 2m
		= A failed* no:route
		fetched A state=ready
		= A running*`},

	{"health that takes its time", `
		push A
		sees attempted=A applied=A state=ready health=progressing unhealthy=web timeout=2m
		= A running* waits for health: apps/Deployment shop/web is progressing
		wait 1m
		= A running*
		wait 1m
		= A failed* not healthy after 2m0s: apps/Deployment shop/web
		sees health=healthy
		= A success*`},

	{"health that fails", `
		push A
		sees attempted=A applied=A state=ready health=failed unhealthy=web
		= A failed* apps/Deployment shop/web is failed: ImagePullBackOff
		push B
		sees attempted=B applied=B state=ready health=healthy
		= A failed, B success*`},

	{"health that is lost later", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		wait 1h
		sees health=progressing unhealthy=web timeout=2m
		= A success*
		wait 1m
		sees health=healthy
		wait 1h
		sees health=progressing unhealthy=web timeout=2m
		wait 3m
		= A failed* not healthy after 2m0s`},

	{"health that is lost while it is looked at again", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		wait 1h
		sees health=progressing unhealthy=web timeout=2m
		wait 1m
		sees state=progressing
		sees state=ready health=missing unhealthy=web
		= A success*
		wait 1m
		= A failed* not healthy after 2m0s`},

	{"health of what was applied long ago", `
		push A
		wait 1h
		sees attempted=A applied=A state=ready health=progressing unhealthy=web timeout=5m outcomes=A:ready brought=50m
		= A running* waits for health: apps/Deployment shop/web is progressing
		wait 4m
		= A running*
		wait 1m
		= A failed* not healthy after 5m0s`},

	{"health of what was applied while the agent was away", `
		push A
		sees attempted=A applied=A state=ready health=progressing unhealthy=web timeout=5m
		leave
		wait 2m
		doubt
		= A unknown*
		push B
		wait 1h
		come
		restart attempted=B applied=B outcomes=B:ready,A:ready brought=50m
		= A success, B running* waits for health
		wait 5m
		= A success, B failed* not healthy after 5m0s`},

	{"health after an agent began anew", `
		push A
		sees attempted=A applied=A state=ready health=progressing unhealthy=web timeout=5m
		leave
		wait 2m
		doubt
		= A unknown*
		wait 1h
		come
		restart
		= A running* waits for health
		wait 4m
		= A running*
		wait 1m
		= A failed* not healthy after 5m0s`},

	{"no health is known", `
		push A
		sees attempted=A applied=A state=ready health=unknown
		= A success*`},

	{"an agent that is away and comes back", `
		push A
		sees attempted=A state=progressing
		leave
		doubt
		= A running*
		wait 59s
		doubt
		= A running*
		wait 2s
		doubt
		= A unknown* not connected
		plan
		= A unknown*
		push B
		= A unknown, B pending*
		doubt
		= A unknown, B unknown*
		come
		doubt
		= A unknown, B unknown*
		sees attempted=B applied=B state=ready health=healthy outcomes=B:ready,A:ready
		= A success, B success*`},

	{"what is done does not become unknown", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		leave
		wait 10m
		doubt
		= A success*`},

	{"a grant that is taken back and given again", `
		push A
		sees attempted=A state=progressing
		revoke
		= A unknown* may no longer be told
		grant
		= A running*`},

	{"a source that is not served any more", `
		push A
		sees attempted=A state=progressing
		follow project=none
		plan
		= A unknown*
		follow
		plan
		= A running*`},

	{"a source that leads to another project", `
		push A
		sees attempted=A state=progressing
		follow project=other
		plan
		= A superseded* another project`},

	{"an applier that is removed", `
		push A
		sees attempted=A state=progressing
		remove
		= A superseded* Kustomization/flux-system/apps was removed
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"an applier that is made anew has applied nothing", `
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		= A success*
		remove
		= A success*
		sees attempted=raw: applied=raw: state=unknown health=unknown
		= A running*
		sees state=blocked message=dependency:not:ready
		= A running* dependency:not:ready
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"a cluster that is made anew", `
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		leave
		come
		fetched raw: state=unknown
		sees attempted=raw: applied=raw: state=blocked health=unknown message=Source:not:ready
		= A pending*
		fetched A state=ready
		sees state=blocked lacks=shop/nobody
		= A failed* dependency 'shop/nobody' not found
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"an applier that is not in the whole set", `
		push A
		sees attempted=A state=progressing
		set
		= A superseded* was removed`},

	{"words that come twice, late and out of order", `
		push A
		sees attempted=A state=progressing
		sees applied=A state=ready health=healthy
		sees attempted=A state=progressing
		= A success*
		push B
		sees attempted=B applied=B state=ready health=healthy
		sees attempted=A applied=A state=ready health=healthy
		sees attempted=B applied=B state=ready health=healthy
		= A success, B success*`},

	{"a release whose chart is of another source", `
		applier HelmRelease/shop/web
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},
}

func TestRollouts(t *testing.T) {
	for _, tt := range rolloutTests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			for line := range strings.Lines(strings.TrimSpace(tt.story)) {
				if line = strings.TrimSpace(line); line != "" {
					s.line(line)
				}
			}
		})
	}
}

// Rollouts are for members of the project, as announcements are.
func TestRolloutsAreForMembers(t *testing.T) {
	s := newStory(t)
	s.line("push A")
	guest := s.user("guest")
	for _, tt := range []struct {
		level tidelock.AccessLevel
		want  tidelock.Kind
	}{{tidelock.NoAccess, tidelock.NotFound}, {tidelock.Guest, tidelock.Denied}, {tidelock.Reporter, tidelock.Internal}} {
		if tt.level != tidelock.NoAccess {
			s.member(forge.OnProject(s.site), guest, tt.level)
		}
		_, _, err := s.Rollouts(t.Context(), as(guest), s.site, tidelock.RolloutFilter{}, tidelock.Page{})
		if err == nil != (tt.want == tidelock.Internal) || err != nil && tidelock.KindOf(err) != tt.want {
			t.Errorf("with level %v rollouts are answered with %v", tt.level, err)
		}
		_, err = s.Observations(t.Context(), as(guest), s.site, tidelock.ObservationFilter{})
		if err == nil != (tt.want == tidelock.Internal) || err != nil && tidelock.KindOf(err) != tt.want {
			t.Errorf("with level %v observations are answered with %v", tt.level, err)
		}
	}
}
