package forge_test

import (
	"crypto/dsa" //lint:ignore SA1019 it is made to be refused
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// keyLine is a line of authorized_keys for the public half of a key.
func keyLine(t *testing.T, public any) string {
	t.Helper()
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func newKeyLine(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return keyLine(t, public)
}

// rsaLine is an RSA key of a size; its modulus is no product of primes, which
// nobody can tell.
func rsaLine(t *testing.T, bits int) string {
	n := new(big.Int).SetBit(new(big.Int), bits-1, 1)
	n.Add(n, big.NewInt(12345))
	return keyLine(t, &rsa.PublicKey{N: n, E: 65537})
}

// Keys that are too weak, too odd or too much work to check are refused, as
// CVE-2026-39829 has it.
func TestKeyLines(t *testing.T) {
	w := newWorld(t)
	good := newKeyLine(t)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224 := dsa.PublicKey{Parameters: dsa.Parameters{P: new(big.Int).SetBit(big.NewInt(1), 1023, 1), Q: new(big.Int).SetBit(big.NewInt(1), 159, 1), G: big.NewInt(2)}, Y: big.NewInt(3)}
	for name, tt := range map[string]struct{ line, want string }{
		"ed25519":               {good, ""},
		"with comment and line": {newKeyLine(t) + " ada@example.com, laptop\n", ""},
		"CRLF":                  {newKeyLine(t) + "\r\n", ""},
		"ECDSA":                 {keyLine(t, &p256.PublicKey), ""},
		"RSA 2048":              {rsaLine(t, 2048), ""},
		"RSA 8192":              {rsaLine(t, 8192), ""},
		"RSA 1024":              {rsaLine(t, 1024), "is an RSA key of 1024 bits"},
		"RSA 2047":              {rsaLine(t, 2047), "is an RSA key of 2047 bits"},
		"RSA 16384":             {rsaLine(t, 16384), "is an RSA key of 16384 bits"},
		"DSA":                   {keyLine(t, &p224), `type "ssh-dss" is not supported`},
		"nothing":               {"", "can't be blank"},
		"a space":               {" \n", "can't be blank"},
		"words":                 {"hello there", "is invalid"},
		"two lines":             {good + "\n" + newKeyLine(t), "is invalid"},
		"options":               {`command="sh" ` + good, "is invalid"},
		"a private key":         {"-----BEGIN OPENSSH PRIVATE KEY-----", "is a private key"},
		"no base64":             {"ssh-ed25519 !!!!", "is invalid"},
		"another type":          {"ssh-rsa " + strings.Fields(good)[1], "is invalid"},
		"long":                  {good + " " + strings.Repeat("x", 9000), "is longer than"},
		"NUL":                   {good + " a\x00b", "is invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := w.AddKey(t.Context(), w.root, w.root.User.ID, forge.NewKey{Title: name, Key: tt.line})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want it taken", err)
			case tt.want == "" && (key.Public != strings.TrimSpace(tt.line) || !strings.HasPrefix(key.Fingerprint, "SHA256:")):
				t.Errorf("the key is %+v", key)
			case tt.want != "" && (err == nil || tidelock.KindOf(err) != tidelock.Invalid || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// keyTable is what SSH keys may do, by hand: everything else is refused to a
// person's key and to a deploy key alike.
var keyTable = map[forge.Action]struct{ reads, pushes string }{
	forge.PullCode: {"y", "y"},
	forge.PushCode: {"403", "y"},
}

func TestAccessByKey(t *testing.T) {
	w := newWorld(t)
	group := w.group("team", tidelock.Private)
	project := w.project(group, "site", tidelock.Private)
	owner := w.user("owner")
	w.member(forge.OnGroup(group), owner, tidelock.Owner)
	targets := []forge.Target{forge.OnProject(project), forge.OnGroup(group), forge.OnForge}
	byKey := func(key tidelock.Key) forge.Principal { return forge.Principal{Key: &key} }
	enable := func(on forge.Target, canPush bool) forge.Principal {
		t.Helper()
		k, err := w.AddDeployKey(t.Context(), w.root, on, forge.NewDeployKey{NewKey: forge.NewKey{Title: "x", Key: newKeyLine(t)}, CanPush: canPush})
		if err != nil {
			t.Fatal(err)
		}
		return byKey(k.Key)
	}
	callers := []struct {
		name   string
		p      forge.Principal
		pushes bool
	}{
		{"a key that reads", enable(forge.OnProject(project), false), false},
		{"a key that pushes", enable(forge.OnProject(project), true), true},
		{"a group's key that reads", enable(forge.OnGroup(group), false), false},
		{"a group's key that pushes", enable(forge.OnGroup(group), true), true},
		{"an owner's key", forge.Principal{User: &owner, Key: &tidelock.Key{ID: 99, User: owner.ID}}, true},
		{"an administrator's key", forge.Principal{User: w.root.User, Key: &tidelock.Key{ID: 98, User: w.root.User.ID}}, true},
	}
	cells := 0
	for _, a := range forge.Actions() {
		for _, c := range callers {
			want := "403"
			row, listed := keyTable[a]
			if listed {
				want = row.reads
				if c.pushes {
					want = row.pushes
				}
			}
			for _, target := range targets {
				err := w.Allow(t.Context(), c.p, a, target)
				if err != nil && strings.HasPrefix(err.Error(), "no rule for") {
					continue // it is done to something else
				}
				got := answer(err)
				if got == "404" && target.Project == nil {
					got = "403" // a project's key does not even see the group
				}
				cells++
				if got != want {
					t.Errorf("%s by %s on %s: got %s (%v), want %s", a, c.name, target, got, err, want)
				}
			}
		}
	}
	if want := len(forge.Actions()) * len(callers); cells != want {
		t.Errorf("%d cells tested, want %d", cells, want)
	}
}

func TestKeyAuthentication(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada")
	key, err := w.AddKey(t.Context(), as(ada), ada.ID, forge.NewKey{Title: "laptop", Key: newKeyLine(t), ExpiresAt: w.clock.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.AuthenticateKey(t.Context(), key.Fingerprint)
	if err != nil || p.User.ID != ada.ID || p.Key.ID != key.ID || p.Token != nil {
		t.Fatalf("authenticated as %+v, %v", p, err)
	}
	if live, err := w.LiveKeys(t.Context(), []tidelock.KeyID{key.ID, 99}); err != nil || len(live) != 1 {
		t.Errorf("live keys are %v, %v", live, err)
	}
	if _, err := w.AuthenticateKey(t.Context(), "SHA256:unknown"); tidelock.KindOf(err) != tidelock.Unauthenticated {
		t.Errorf("an unknown key: %v", err)
	}
	w.clock = w.clock.Add(2 * time.Hour)
	if _, err := w.AuthenticateKey(t.Context(), key.Fingerprint); tidelock.KindOf(err) != tidelock.Unauthenticated {
		t.Errorf("an expired key: %v", err)
	}
	if live, err := w.LiveKeys(t.Context(), []tidelock.KeyID{key.ID}); err != nil || len(live) != 0 {
		t.Errorf("live keys after the expiry are %v, %v", live, err)
	}
}

// A deploy key may go to another project only by the hand of who manages both.
func TestDeployKeyInAnotherProject(t *testing.T) {
	w := newWorld(t)
	mine, theirs := w.group("mine", tidelock.Private), w.group("theirs", tidelock.Private)
	site, shop := w.project(mine, "site", tidelock.Private), w.project(mine, "shop", tidelock.Private)
	vault := w.project(theirs, "vault", tidelock.Private)
	ada, eve := w.user("ada"), w.user("eve")
	w.member(forge.OnGroup(mine), ada, tidelock.Maintainer)
	w.member(forge.OnGroup(theirs), eve, tidelock.Maintainer)
	n := forge.NewDeployKey{NewKey: forge.NewKey{Title: "flux", Key: newKeyLine(t)}}
	key, err := w.AddDeployKey(t.Context(), as(ada), forge.OnProject(site), n)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.AddDeployKey(t.Context(), as(ada), forge.OnProject(shop), n); err != nil || again.ID != key.ID {
		t.Errorf("in another project of the same maintainer: %+v, %v", again, err)
	}
	_, err = w.AddDeployKey(t.Context(), as(eve), forge.OnProject(vault), n)
	if tidelock.KindOf(err) != tidelock.Conflict {
		t.Errorf("somebody else's deploy key: %v, want taken", err)
	}
	if _, err := w.EnableDeployKey(t.Context(), as(eve), forge.OnProject(vault), key.ID); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("somebody else's deploy key by its id: %v, want not found", err)
	}
	if _, err := w.AddKey(t.Context(), as(eve), eve.ID, n.NewKey); tidelock.KindOf(err) != tidelock.Conflict {
		t.Errorf("a deploy key as one's own: %v, want taken", err)
	}
	hers, err := w.AddKey(t.Context(), as(eve), eve.ID, forge.NewKey{Title: "hers", Key: newKeyLine(t)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.EnableDeployKey(t.Context(), as(eve), forge.OnProject(vault), hers.ID); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("a person's key as a deploy key: %v, want not found", err)
	}
	for _, project := range []tidelock.Project{site, shop} {
		if err := w.RemoveDeployKey(t.Context(), as(ada), forge.OnProject(project), key.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.AddDeployKey(t.Context(), as(eve), forge.OnProject(vault), n); err != nil {
		t.Errorf("a key that is enabled nowhere any more: %v", err)
	}
}
