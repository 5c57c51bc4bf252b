package forge_test

import (
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// FuzzAuthenticate offers anything as a credential, in every way that there is:
// only what was issued, to the letter, stands for anybody.
func FuzzAuthenticate(f *testing.F) {
	w := newWorld(f)
	user := w.user("ada")
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	_, personal, err := w.CreatePersonalToken(f.Context(), w.root, user.ID, forge.NewToken{Name: "x", Scopes: []tidelock.Scope{tidelock.ScopeAPI}})
	if err != nil {
		f.Fatal(err)
	}
	_, access, err := w.CreateAccessToken(f.Context(), w.root, forge.OnProject(project), forge.NewToken{Name: "x", Scopes: []tidelock.Scope{tidelock.ScopeAPI}})
	if err != nil {
		f.Fatal(err)
	}
	_, deploy, err := w.CreateDeployToken(f.Context(), w.root, forge.OnProject(project), forge.NewToken{
		Name: "x", Username: "robot", Scopes: []tidelock.Scope{tidelock.ScopeReadRepository},
	})
	if err != nil {
		f.Fatal(err)
	}
	agent, err := w.CreateAgent(f.Context(), w.root, project, "prod")
	if err != nil {
		f.Fatal(err)
	}
	_, agents, err := w.CreateAgentToken(f.Context(), w.root, project, agent.ID, "x", "")
	if err != nil {
		f.Fatal(err)
	}
	// Issued secrets are named, because a corpus outlives them.
	issued := strings.NewReplacer("PERSONAL", personal.Reveal(), "ACCESS", access.Reveal(), "DEPLOY", deploy.Reveal(), "AGENT", agents.Reveal())
	for _, secret := range []string{
		"PERSONAL", "ACCESS", "DEPLOY", "AGENT", "PERSONALx", "xPERSONAL", " PERSONAL", "PERSONAL\n", "PERSONAL\x00", "PERSONALACCESS",
		"glpat-", "gldt-", "glagent-", "glpat-' OR 1=1 --", "GLPAT-x", "gldt-PERSONAL", "", "\xff",
	} {
		for _, username := range []string{"", "ada", "robot", "ROBOT", "gitlab-ci-token"} {
			f.Add(username, secret)
		}
	}
	f.Fuzz(func(t *testing.T, username, secret string) {
		secret = issued.Replace(secret)
		given := tidelock.NewSecret(secret)
		person := secret == personal.Reveal() || secret == access.Reveal()

		by, err := w.Authenticate(t.Context(), given)
		if good := person || secret == deploy.Reveal(); good != (err == nil) {
			t.Errorf("a token that was issued (%t): %v", good, err)
		}
		if err != nil && (tidelock.KindOf(err) != tidelock.Unauthenticated || !by.Anonymous()) {
			t.Errorf("got %+v, %v", by, err)
		}
		by, err = w.AuthenticateBasic(t.Context(), username, given)
		nobody := username == "" && secret == ""
		if good := nobody || username != "" && (person || secret == deploy.Reveal() && username == "robot"); good != (err == nil) {
			t.Errorf("user name %q with a token that was issued (%t): %v", username, good, err)
		}
		if (nobody || err != nil) && !by.Anonymous() {
			t.Errorf("user name %q stands for %+v", username, by)
		}
		if _, _, err = w.AuthenticateAgent(t.Context(), given); (secret == agents.Reveal()) != (err == nil) {
			t.Errorf("an agent's token: %v", err)
		}
		if err != nil && strings.Contains(err.Error(), secret) && len(secret) > 12 {
			t.Errorf("the error repeats the secret: %v", err)
		}
	})
}
