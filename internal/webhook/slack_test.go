package webhook_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/webhook"
)

// A chat is a project whose syncs are told to a receiver, and a cluster of it.
type chat struct {
	*world
	agent tidelock.Agent
	rec   *receiver
	now   time.Time // when the next sync is saved: long ago, so that it is due
}

const slackSecret = "/services/T0/s3cret"

func newChat(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *chat {
	t.Helper()
	w := newWorld(t)
	c := &chat{world: w, rec: newReceiver(t, answer), now: time.Now().Add(-time.Hour)}
	agent, err := w.store.CreateAgent(t.Context(), tidelock.Agent{Project: w.project.ID, Name: "prod"})
	must(t, err)
	c.agent = agent
	url, channel, name := tidelock.NewSecret(c.rec.URL+slackSecret), "#deploys", "Tidelock"
	_, err = w.SaveIntegration(t.Context(), w.root, w.project, tidelock.Slack, forge.IntegrationFields{URL: &url, Channel: &channel, Username: &name})
	must(t, err)
	return c
}

// sync saves how a commit went in appliers.
func (c *chat) sync(commit string, state tidelock.RolloutState, message string, appliers ...string) {
	c.t.Helper()
	var rollouts []tidelock.Rollout
	for _, name := range appliers {
		r := tidelock.Rollout{
			Agent: c.agent.ID, Applier: tidelock.ObjectID("Kustomization/flux-system/" + name), Source: "GitRepository/flux-system/site",
			Project: c.project.ID, Commit: tidelock.CommitID(commit), Ref: "refs/heads/main", Environment: "prod/" + name,
			State: state, Newest: true, UpdatedAt: c.now,
		}
		r.Reason, r.Message, _ = strings.Cut(message, ": ")
		older, _, err := c.store.Rollouts(c.t.Context(), tidelock.RolloutFilter{Agent: r.Agent, Applier: r.Applier, Newest: true}, tidelock.Page{})
		must(c.t, err)
		for _, o := range older {
			if o.Newest = false; o.Commit != r.Commit {
				rollouts = append(rollouts, o)
			}
		}
		rollouts = append(rollouts, r)
	}
	_, err := c.store.SaveRollouts(c.t.Context(), rollouts...)
	must(c.t, err)
	must(c.t, bus.Publish(c.hints, tidelock.RolloutChanged{Project: c.project.ID, Commit: tidelock.CommitID(commit)}))
}

// texts are the messages that arrived.
func (c *chat) texts() (all []string) {
	c.t.Helper()
	for _, call := range c.rec.received() {
		all = append(all, call.json(c.t)["text"].(string))
	}
	return all
}

func (c *chat) arrive(n int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%d messages", n), func() bool { return len(c.rec.received()) >= n })
}

func TestSlackMessages(t *testing.T) {
	c := newChat(t, nil)
	c.run()
	first := c.commit("web: use the new image\n\nIt is smaller.", nil, "a=1")
	second := c.commit("web: name the right path", []string{first}, "a=2")
	const failure = "BuildFailed: kustomize build failed: <no such> file & folder\nsecond line"
	c.sync(first, tidelock.RolloutFailed, failure, "apps")
	c.arrive(1)
	c.sync(first, tidelock.RolloutRunning, "", "apps")
	c.sync(first, tidelock.RolloutFailed, failure, "apps") // Flux tried again
	c.now = c.now.Add(12*time.Minute + 4*time.Second)
	c.sync(second, tidelock.RolloutSuccess, "", "apps")
	c.arrive(2)
	c.sync(second, tidelock.RolloutSuccess, "", "apps")
	c.sync(first[:39]+"0", tidelock.RolloutFailed, "ReconciliationFailed: gone", "apps") // a commit that nobody has any more
	c.arrive(3)

	link := func(id string) string {
		return "<https://forge.example/base/team/site/-/commit/" + id + "/timeline|" + id[:8] + ">"
	}
	const project = "<https://forge.example/base/team/site|team/site>"
	const where = "`Kustomization/flux-system/apps` on `prod`, environment `prod/apps` in " + project + "\n"
	want := []string{
		"*Sync failed:* " + where + link(first) + " `web: use the new image` by `Ada`\n" +
			"```\nBuildFailed: kustomize build failed: &lt;no such&gt; file &amp; folder\nsecond line\n```",
		"*Sync recovered* after 12m4s: " + where + link(second) + " `web: name the right path` by `Ada`",
		"*Sync failed:* " + where + link(first[:39]+"0") + "\n```\nReconciliationFailed: gone\n```",
	}
	if diff := cmp.Diff(want, c.texts()); diff != "" {
		t.Fatalf("got other messages than wanted (-want +got):\n%s", diff)
	}
	call := c.rec.received()[0]
	if call.uri != slackSecret || call.header.Get("Content-Type") != "application/json" || call.header.Get("X-Gitlab-Event") != "" || call.header.Get("Idempotency-Key") == "" {
		t.Errorf("the call was %s with %v", call.uri, call.header)
	}
	body := call.json(t)
	delete(body, "text")
	if diff := cmp.Diff(map[string]any{
		"channel": "#deploys", "username": "Tidelock", "mrkdwn": true, "unfurl_links": false, "unfurl_media": false,
	}, body); diff != "" {
		t.Errorf("the payload has other fields than wanted (-want +got):\n%s", diff)
	}
}

func TestManyFailuresAreOneMessage(t *testing.T) {
	c := newChat(t, nil)
	head := c.commit("break it all", nil, "a=1")
	var names []string
	for i := range 50 {
		names = append(names, fmt.Sprintf("app-%02d", i))
	}
	c.sync(head, tidelock.RolloutFailed, "BuildFailed: first line\nsecond line", names[:25]...)
	c.now = c.now.Add(9 * time.Second)
	c.sync(head, tidelock.RolloutFailed, "BuildFailed: first line\nsecond line", names[25:]...)
	c.run()
	c.arrive(1)
	c.now = c.now.Add(time.Minute)
	c.sync(c.commit("mend it all", nil, "a=2"), tidelock.RolloutSuccess, "", names...)
	c.arrive(2)
	for i, tt := range []struct{ head, line string }{
		{"*Sync failed* in 50 places of ", "\n• `Kustomization/flux-system/app-07` on `prod`, environment `prod/app-07`: `BuildFailed: first line`\n"},
		{"*Sync recovered* in 50 places of ", "\n• `Kustomization/flux-system/app-07` on `prod`, environment `prod/app-07` after 1m9s\n"},
	} {
		text := c.texts()[i]
		if !strings.HasPrefix(text, tt.head) || !strings.Contains(text, tt.line) || strings.Count(text, "\n• ") != 21 || !strings.HasSuffix(text, "\n• and 30 more") {
			t.Errorf("got the message %q", text)
		}
	}
	if n := len(c.rec.received()); n != 2 {
		t.Errorf("got %d messages, want 2", n)
	}
}

// TestSlackSurvives stops the server wherever it can be: before a notice is
// told, and after a message was sent that nobody took.
func TestSlackSurvives(t *testing.T) {
	c := newChat(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	head := c.commit("one", nil, "a=1")
	c.sync(head, tidelock.RolloutFailed, "BuildFailed: a", "x") // no worker hears of it
	c.run()
	c.arrive(1)
	c.stop()
	c.run()
	c.arrive(2)
	c.stop()
	calls := c.rec.received()
	if a, b := calls[0], calls[1]; a.header.Get("Idempotency-Key") != b.header.Get("Idempotency-Key") || string(a.body) != string(b.body) {
		t.Errorf("the second try is another message: %s, %s", a.body, b.body)
	}
	c.now = c.now.Add(time.Minute)
	c.sync(head, tidelock.RolloutSuccess, "", "x")
	c.run()
	c.arrive(3)
	texts := c.texts()
	if len(texts) != 3 || !strings.HasPrefix(texts[2], "*Sync recovered* after 1m0s: ") {
		t.Errorf("got %q", texts)
	}
}

// TestSlackURLIsSecret looks for the URL in all that is written down.
func TestSlackURLIsSecret(t *testing.T) {
	c := newChat(t, func(n int, w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
	c.sync(c.commit("one", nil, "a=1"), tidelock.RolloutFailed, "BuildFailed: a", "x")
	c.run()
	c.eventually("the refusal is shown", func() bool {
		_, last, err := c.Integration(t.Context(), c.root, c.project, tidelock.Slack)
		must(t, err)
		return last.Status == http.StatusForbidden && strings.HasSuffix(last.URL, "/xxxxx")
	})
	c.stop()
	var dump bytes.Buffer
	_, err := store.WriteDump(t.Context(), c.url, func(string) (io.WriteCloser, error) { return nopCloser{&dump}, nil })
	must(t, err)
	if !bytes.Contains(dump.Bytes(), []byte(`"sync"`)) {
		t.Error("the message is not in the dump")
	}
	if bytes.Contains(dump.Bytes(), []byte("s3cret")) {
		t.Errorf("the database tells the URL")
	}
	events, _, err := c.AuditLog(t.Context(), c.root, forge.OnProject(c.project), tidelock.AuditFilter{}, tidelock.Page{})
	must(t, err)
	if e := events[0]; e.Act != "integration created" || strings.Contains(fmt.Sprintf("%+v", e), "s3cret") {
		t.Errorf("the audit log says %+v", e)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// TestSlackIsGuarded calls nothing that webhooks may not call.
func TestSlackIsGuarded(t *testing.T) {
	c := newChat(t, nil)
	guard, err := webhook.NewGuard(webhook.GuardConfig{})
	must(t, err)
	c.guard = guard
	c.sync(c.commit("one", nil, "a=1"), tidelock.RolloutFailed, "BuildFailed: a", "x")
	c.run()
	c.eventually("the call is refused", func() bool {
		_, last, err := c.Integration(t.Context(), c.root, c.project, tidelock.Slack)
		must(t, err)
		return strings.Contains(last.Error, "the URL is blocked")
	})
	if n := len(c.rec.received()); n != 0 {
		t.Errorf("it was called %d times", n)
	}
}

// hostile are texts that want to be more than text.
var hostile = []string{
	"<!channel> <!here> <!everyone> <@U123> <#C1|x> <https://evil.example|forge.example>",
	"` *bold* <!here> `\n```\n<!channel>\n```",
	"@channel @here @everyone @all @HERE a@all.example",
	"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x07\x08 \u202egnp.exe \u2066x\u2069 \u0085",
	strings.Repeat("x", 1<<20),
	strings.Repeat("line\n", 10_000),
	"&lt;!here&gt; &amp;",
	"\xff\xfe not UTF-8 \x00",
	"",
	"a|b>c <a|b>",
}

// H20: what others wrote stays text.
func TestH20HostileMessages(t *testing.T) {
	c := newChat(t, nil)
	c.run()
	for i, text := range hostile {
		title := strings.ReplaceAll(text, "\x00", "")
		if len(title) > 1<<16 {
			title = title[:1<<16]
		}
		head := c.commit(title+" ", nil, fmt.Sprint("a=", i))
		c.sync(head, tidelock.RolloutFailed, "Odd: "+text, "one")
		c.arrive(2*i + 1)
		c.sync(head, tidelock.RolloutFailed, "Odd"+fmt.Sprint(i)+": "+text, "two", "three")
		c.arrive(2*i + 2)
	}
	for i, text := range c.texts() {
		if err := checkSlackText(text, 8<<10); err != nil {
			t.Errorf("message %d: %v: %q", i, err, text)
		}
	}
}

var ownLink = regexp.MustCompile(`<https://forge\.example/base/team/site[^<>|]*\|[^<>|]*>`)

// checkSlackText refuses a message in which others got further than text.
func checkSlackText(text string, most int) error {
	rest := ownLink.ReplaceAllString(text, "")
	switch {
	case !utf8.ValidString(text):
		return fmt.Errorf("is not UTF-8")
	case len(text) > most:
		return fmt.Errorf("has %d bytes", len(text))
	case strings.ContainsAny(rest, "<>"):
		return fmt.Errorf("has a link or a command of others")
	case regexp.MustCompile(`&(?:[^alg]|a[^m]|l[^t]|g[^t])`).MatchString(rest):
		return fmt.Errorf("has an ampersand that is not escaped")
	case strings.Count(text, "`")%2 != 0:
		return fmt.Errorf("has code that does not end")
	case regexp.MustCompile(`(?i)@(channel|here|everyone|all)\b`).MatchString(text):
		return fmt.Errorf("calls everybody")
	case strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.Is(unicode.Bidi_Control, r)
	}):
		return fmt.Errorf("has control characters")
	}
	// Whatever others wrote is within code: outside there is nothing of it.
	outside := regexp.MustCompile("(?s)```.*?```|`[^`\n]*`").ReplaceAllString(rest, "")
	if m := regexp.MustCompile(`^\*Sync (failed|recovered)(:\*|\*) ?[\w ]*(, environment)?[\w •:,\n]*$`).FindString(outside); m == "" {
		return fmt.Errorf("says %q outside of code", outside)
	}
	return nil
}

func FuzzSlackText(f *testing.F) {
	for _, text := range hostile {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		line, block, link := webhook.Code(text), webhook.CodeBlock(text), webhook.SlackLink("https://forge.example/base/team/site", text)
		for what, got := range map[string]string{
			"code": "*Sync failed:* " + line, "a block": "*Sync failed:* " + block, "a label": "*Sync failed:* " + link,
		} {
			if what == "a label" && len(text) > 1000 {
				continue
			}
			if err := checkSlackText(got, 8<<10); err != nil {
				t.Errorf("%s: %v: %q", what, err, got)
			}
		}
		if strings.Count(line, "`") != 2 || strings.Contains(line, "\n") {
			t.Errorf("code is %q", line)
		}
		if strings.Count(block, "`") != 6 || strings.Count(block, "\n") > 12 {
			t.Errorf("a block is %q", block)
		}
		if _, err := json.Marshal(line + block + link); err != nil {
			t.Error(err)
		}
	})
}

func TestSpanOf(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "less than a second", 1500 * time.Millisecond: "1s", 59 * time.Second: "59s", time.Minute: "1m0s", 12*time.Minute + 4*time.Second: "12m4s",
		time.Hour: "1h0m", 3*time.Hour + 59*time.Second: "3h0m", 25 * time.Hour: "1d1h", 72 * time.Hour: "3d0h",
	} {
		if got := webhook.SpanOf(d); got != want {
			t.Errorf("%d: got %s, want %s", d, got, want)
		}
	}
}
