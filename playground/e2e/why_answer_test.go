package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"tidelock.dev"
	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/e2e/why"
)

// A whyAnswer is a verdict as the API tells it.
type whyAnswer struct {
	Environment string             `json:"environment"`
	Object      tidelock.ObjectID  `json:"object"`
	Code        tidelock.CauseCode `json:"code"`
	Sentence    string             `json:"sentence"`
	Next        string             `json:"next"`
	Evidence    []struct {
		Where string `json:"where"`
		What  string `json:"what"`
	} `json:"evidence"`
	Also []whyAnswer `json:"also"`
}

func (a whyAnswer) verdict() tidelock.Verdict {
	v := tidelock.Verdict{Environment: a.Environment, Object: a.Object, Code: a.Code, Sentence: a.Sentence, Next: a.Next}
	for _, e := range a.Evidence {
		v.Evidence = append(v.Evidence, tidelock.Evidence{Where: e.Where, What: e.What})
	}
	for _, also := range a.Also {
		v.Also = append(v.Also, also.verdict())
	}
	return v
}

func (c *whyCase) revision() string {
	if c.Ask != "" {
		return c.expand(c.Ask)
	}
	return c.words["COMMIT"]
}

// ask asks once. It gives how long the answer took, too.
func (c *whyCase) ask(ctx context.Context) ([]tidelock.Verdict, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var answer struct {
		Verdicts []whyAnswer `json:"verdicts"`
	}
	began := time.Now()
	err := c.world.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/repository/commits/%s/why", c.p.ID, url.PathEscape(c.revision())), nil, &answer)
	took := time.Since(began)
	var verdicts []tidelock.Verdict
	for _, a := range answer.Verdicts {
		verdicts = append(verdicts, a.verdict())
	}
	return verdicts, took, err
}

// answer waits until a cause is named.
func (c *whyCase) answer(ctx context.Context, code tidelock.CauseCode) error {
	ctx, cancel := context.WithTimeout(ctx, whyStep)
	defer cancel()
	for {
		answers, _, err := c.ask(ctx)
		if err == nil && len(answers) > 0 && answers[0].Code == code {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %v, error %w", whyStep, answers, err)
		case <-time.After(whyPolling):
		}
	}
}

func (c *whyCase) judge(answers []tidelock.Verdict) error {
	here := *c.Case
	here.Object = tidelock.ObjectID(c.expand(string(here.Object)))
	here.Evidence = nil
	for _, text := range c.Evidence {
		here.Evidence = append(here.Evidence, c.expand(text))
	}
	return here.Judge(answers)
}

// settle waits until the case's answer is right. It is not an error when that
// does not happen: count says so.
func (c *whyCase) settle(ctx context.Context) {
	if c.wrong != nil {
		return
	}
	for {
		answers, _, err := c.ask(ctx)
		if err == nil && c.judge(answers) == nil {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(whyPolling):
		}
	}
	if c.stray != nil {
		c.wrong = c.stray()
	}
}

// count asks once more, and this answer counts.
func (c *whyCase) count(ctx context.Context) {
	answers, took, err := c.ask(ctx)
	if err == nil {
		err = c.judge(answers)
	}
	c.wrong = err
	c.took = max(c.took, took)
	if len(answers) > 0 {
		c.sentence = answers[0].Sentence
	}
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	c.world.times = append(c.world.times, took)
}

// watch asks all the time, until stray is called, which returns what was
// blamed in the meantime.
func (c *whyCase) watch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	blamed := make(chan error, 1)
	go func() {
		var first error
		for ctx.Err() == nil {
			answers, _, err := c.ask(ctx)
			for _, a := range answers {
				if err == nil && first == nil && a.Blocking() {
					first = fmt.Errorf("on its way, named %s", why.Told(a))
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(2 * whyPolling):
			}
		}
		blamed <- first
	}()
	c.stray = sync.OnceValue(func() error {
		cancel()
		return <-blamed
	})
	c.world.t.Cleanup(func() { _ = c.stray() })
}

// command asks with the command line, which has to say the same as the API.
func (c *whyCase) command(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, e2e.Binary(c.world.t), "why", c.revision(), "--project", c.p.Path)
	cmd.Env = append(os.Environ(), "TIDELOCK_URL="+c.world.URL, "TIDELOCK_TOKEN="+c.world.Token, "TIDELOCK_CA_FILE="+c.world.CAFile)
	out, err := cmd.CombinedOutput()
	code := 1
	switch verdict := (tidelock.Verdict{Code: c.Expect}); {
	case c.Expect == tidelock.CauseUnknown:
		code = 3
	case !verdict.Blocking():
		code = 0
	}
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), fmt.Sprintf(" (%s)\n", c.Expect)) {
		return fmt.Errorf("tidelock why: exit code %d, want %d and %s; %w\n%s", got, code, c.Expect, err, out)
	}
	return nil
}
