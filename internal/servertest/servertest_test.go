package servertest_test

import (
	"net/http"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/servertest"
)

func TestPushAndRestart(t *testing.T) {
	s := servertest.Start(t)
	site := s.Project("team/web/site", tidelock.Private)
	first := site.Push("main", "app.yaml", "kind: ConfigMap\n")
	second := site.Push("main", "app.yaml", "kind: Secret\n")
	if first == second {
		t.Fatal("two pushes made one commit")
	}

	s.Restart()
	ada := s.User("ada")
	var pushes []struct {
		Updates []struct{ New tidelock.CommitID }
	}
	path := "projects/team%2Fweb%2Fsite/pushes"
	s.Call(s.Token, http.MethodGet, path, nil, &pushes)
	if len(pushes) != 2 || pushes[0].Updates[0].New != second {
		t.Errorf("got %+v, want two pushes, the newest %s first", pushes, second)
	}
	if got := s.Do(http.MethodGet, "/api/v4/"+path, ada.Token, nil).Status; got != http.StatusNotFound {
		t.Errorf("got %d for somebody who is no member, want 404", got)
	}
	site.Member(ada, tidelock.Developer)
	if got := s.Do(http.MethodGet, "/api/v4/"+path, ada.Token, nil).Status; got != http.StatusOK {
		t.Errorf("got %d for a member, want 200", got)
	}

	s.Kill()
	s.Start()
	third := site.Push("main", "app.yaml", "kind: Service\n")
	s.Call(s.Token, http.MethodGet, path, nil, &pushes)
	if len(pushes) != 3 || pushes[0].Updates[0].New != third {
		t.Errorf("got %+v, want a third push of %s", pushes, third)
	}
}

func TestCloneOverBothListeners(t *testing.T) {
	s := servertest.Start(t)
	site := s.Project("team/site", tidelock.Public)
	commit := site.Push("main", "app.yaml", "kind: ConfigMap\n")
	for _, base := range []string{s.URL, s.HTTPURL} {
		out := s.MustGit(t.TempDir(), "ls-remote", base+"/team/site.git", "refs/heads/main")
		if !strings.HasPrefix(out, string(commit)) {
			t.Errorf("%s: got %q, want %s", base, out, commit)
		}
	}
}
