package ociserver

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/seal"
)

const (
	service   = "container_registry"
	tokenLife = 5 * time.Minute
	maxToken  = 16 << 10 // bytes
	maxScopes = 10       // each costs a search for its project
)

// A Key signs and verifies tokens.
type Key struct{ private ed25519.PrivateKey }

// OpenKey reads the key in a file, which is made if it does not exist.
func OpenKey(path string) (*Key, error) {
	text, err := seal.File(path, func() ([]byte, error) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the registry's key: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("read the registry's key: %q holds no key; remove it and a new one is made", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the registry's key: %w", err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read the registry's key: %q holds a %T and no Ed25519 key; remove it and a new one is made", path, key)
	}
	return &Key{private}, nil
}

// A scope is what a client asks a token for: verbs on an image.
type scope struct {
	Type  string   `json:"type"`
	Name  string   `json:"name"`
	Verbs []string `json:"actions"`
}

func (s scope) covers(name, verb string) bool {
	return s.Type == "repository" && s.Name == name && (slices.Contains(s.Verbs, verb) || slices.Contains(s.Verbs, "*"))
}

// parseScopes reads the scopes of a request, repeated or separated by spaces.
// What is not about an image, or not of a form that we know, is left out: the
// token is good for the rest.
func parseScopes(values []string) ([]scope, error) {
	var scopes []scope
	for _, value := range values {
		for word := range strings.FieldsSeq(value) {
			if len(scopes) == maxScopes {
				return nil, tidelock.Errorf(tidelock.Invalid, "one token may be asked for %d scopes", maxScopes)
			}
			kind, rest, _ := strings.Cut(word, ":")
			name, verbs, ok := strings.Cut(rest, ":")
			if !ok || kind != "repository" || len(name) > maxName || !validName.MatchString(name) {
				continue
			}
			s := scope{Type: kind, Name: name}
			for _, verb := range []string{pull, push, remove, "*"} {
				if slices.Contains(strings.Split(verbs, ","), verb) {
					s.Verbs = append(s.Verbs, verb)
				}
			}
			if len(s.Verbs) > 0 {
				scopes = append(scopes, s)
			}
		}
	}
	return scopes, nil
}

// claims are what a token says: who asked, by the id of the credential, and
// for what. It gives no right: those are asked for with every request.
type claims struct {
	jwt.RegisteredClaims
	Access []scope `json:"access"`

	credential forge.Credential
	scopes     []scope
}

// sign makes a token.
func (k *Key) sign(issuer string, c forge.Credential, scopes []scope, now time.Time) (string, error) {
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: issuer, Audience: jwt.ClaimStrings{service}, Subject: subject(c), ID: rand.Text(),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-5 * time.Second)),
			ExpiresAt: jwt.NewNumericDate(now.Add(tokenLife)),
		},
		Access: scopes,
	})
	signed, err := token.SignedString(k.private)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return signed, nil
}

const (
	subjectToken  = "token/"
	subjectAgent  = "agent-token/"
	subjectNobody = "nobody"
)

func subject(c forge.Credential) string {
	switch {
	case c.Token != 0:
		return subjectToken + strconv.FormatInt(int64(c.Token), 10)
	case c.AgentToken != 0:
		return subjectAgent + strconv.FormatInt(int64(c.AgentToken), 10)
	}
	return subjectNobody
}

func parseSubject(text string) (c forge.Credential, ok bool) {
	if text == subjectNobody {
		return c, true
	}
	number, isAgent := strings.CutPrefix(text, subjectAgent)
	if !isAgent {
		if number, ok = strings.CutPrefix(text, subjectToken); !ok {
			return c, false
		}
	}
	id, err := strconv.ParseInt(number, 10, 64)
	if err != nil || id <= 0 {
		return c, false
	}
	if isAgent {
		return forge.Credential{AgentToken: tidelock.AgentTokenID(id)}, true
	}
	return forge.Credential{Token: tidelock.TokenID(id)}, true
}

func errBadToken() error {
	return tidelock.Errorf(tidelock.Unauthenticated, "the token is not valid, or has expired; ask for a new one")
}

// verify reads a token that this key signed for this registry. There is one
// algorithm and one key, so a token's header has nothing to tell: one that
// names a key, or where to find it, is refused.
func (k *Key) verify(text, issuer string, now time.Time) (claims, error) {
	if len(text) > maxToken {
		return claims{}, errBadToken()
	}
	var c claims
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithStrictDecoding(),
		jwt.WithAudience(service), jwt.WithIssuer(issuer), jwt.WithExpirationRequired(), jwt.WithNotBeforeRequired(),
		jwt.WithIssuedAt(), jwt.WithTimeFunc(func() time.Time { return now }),
	)
	_, err := parser.ParseWithClaims(text, &c, func(t *jwt.Token) (any, error) {
		for name := range t.Header {
			if name != "alg" && name != "typ" {
				return nil, fmt.Errorf("the header has a field %q", name)
			}
		}
		return k.private.Public(), nil
	})
	if err != nil || len(c.Access) > maxScopes {
		return claims{}, errBadToken()
	}
	credential, ok := parseSubject(c.Subject)
	if !ok {
		return claims{}, errBadToken()
	}
	c.credential, c.scopes = credential, c.Access
	return c, nil
}

// issue answers a request for a token as GitLab does.
func (s *Server) issue(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	query := r.URL.Query()
	if r.Method != http.MethodGet || query.Get("service") != service || len(query["service"]) != 1 {
		return &statusError{http.StatusNotFound, registry.Unsupported,
			"tokens are given out at GET " + authPath + "?service=" + service}
	}
	by, err := s.admit(w, r)
	switch {
	case err != nil:
		if _, slow := errors.AsType[*limit.Exceeded](err); !slow && tidelock.KindOf(err) == tidelock.Unauthenticated {
			err = tidelock.Errorf(tidelock.Unauthenticated, "HTTP Basic: Access denied. %s", messageOf(err))
		}
		return err
	case by.bearer:
		return tidelock.Errorf(tidelock.Unauthenticated, "HTTP Basic: Access denied. A registry token cannot be used to get another; sign in with a user name and an access token")
	}
	scopes, err := parseScopes(query["scope"])
	if err != nil {
		return err
	}
	if by.Anonymous() {
		// Nobody is told by this what there is: the answer is the same for
		// what is private and for what does not exist.
		if scopes = s.allowed(r, by, scopes); len(scopes) == 0 {
			return tidelock.Errorf(tidelock.Denied, "access forbidden: sign in with a user name and an access token")
		}
	}
	now := s.now()
	token, err := s.key.sign(s.issuer(), by.credential, scopes, now)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Token     string `json:"token"`
		ExpiresIn int    `json:"expires_in"`
		IssuedAt  string `json:"issued_at"`
	}{token, int(tokenLife.Seconds()), now.UTC().Format(time.RFC3339)})
	return nil
}

// allowed are those scopes of which the caller may do something now.
func (s *Server) allowed(r *http.Request, by caller, scopes []scope) []scope {
	return slices.DeleteFunc(scopes, func(sc scope) bool {
		project, _, err := s.forge.ProjectOfImage(r.Context(), sc.Name)
		if err != nil {
			return true
		}
		return !slices.ContainsFunc(sc.Verbs, func(verb string) bool {
			right, ok := rights[verb]
			return ok && s.forge.Allow(r.Context(), by.Principal, right, forge.OnProject(project)) == nil
		})
	})
}
