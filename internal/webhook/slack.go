package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// tellNews makes deliveries of syncs that failed or recovered, until ctx is
// done. Each is a row before it is a delivery, and the two change places in
// one transaction together with the memory of what was told: so a restart
// neither loses a message nor makes it twice. Once made it is sent like any
// other delivery, at least once.
func (w *Worker) tellNews(ctx context.Context) {
	for {
		next := w.tell(ctx)
		timer := time.NewTimer(max(next.Sub(w.Now()), 0))
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
			case <-timer.C:
				waiting = false
			case <-w.heard:
				// What was noted just now is not to be told before the window ends.
				if soon := w.Now().Add(w.Window); soon.Before(next) {
					next = soon
					timer.Reset(w.Window)
				}
			}
			if ctx.Err() != nil {
				timer.Stop()
				return
			}
		}
	}
}

// tell makes deliveries of what is due and returns when to look again.
func (w *Worker) tell(ctx context.Context) time.Time {
	now := w.Now().UTC()
	latest := now.Add(lookAgain)
	news, next, err := w.Forge.News(ctx, now, w.Window)
	if err != nil {
		w.warn(ctx, "syncs to be told not read", err)
		latest = now.Add(retryExpand)
	}
	failed := map[tidelock.ProjectID]bool{} // what follows in a project builds on what was told before
	made := 0
	for _, n := range news {
		if failed[n.Project.ID] {
			continue
		}
		deliveries, err := w.messages(n, now)
		if err == nil {
			err = w.Forge.Tell(ctx, n, deliveries)
		}
		if err != nil {
			failed[n.Project.ID] = true
			latest = now.Add(retryStore)
			if tidelock.KindOf(err) != tidelock.Conflict { // another server told it
				w.warn(ctx, "syncs not told", err)
			}
			continue
		}
		made += len(deliveries)
	}
	if made > 0 {
		w.ring()
	}
	if next.IsZero() || next.After(latest) {
		return latest
	}
	return next
}

// messages makes the deliveries of what a commit did. Those of one integration
// keep their order.
func (w *Worker) messages(n forge.SyncNews, now time.Time) ([]tidelock.Delivery, error) {
	var deliveries []tidelock.Delivery
	for _, m := range n.Messages {
		for _, text := range []string{w.links.failed(n, m), w.links.recovered(n, m)} {
			if text == "" {
				continue
			}
			body, err := json.Marshal(slackPayload{Text: text, Username: m.Integration.Username, Channel: m.Integration.To(), Markdown: true})
			if err != nil {
				return nil, fmt.Errorf("write a message for %s: %w", m.Integration.Kind, err)
			}
			deliveries = append(deliveries, tidelock.Delivery{
				Hook: m.Integration.Hook, Kind: tidelock.HookSync, Ref: tidelock.RefName(m.Integration.Kind),
				UUID: newUUID(), Event: newUUID(), Body: body, NextAt: now,
			})
		}
	}
	return deliveries, nil
}

// A slackPayload is what Slack's incoming webhooks take, and those of others.
// All is in the text, which every one of them shows.
type slackPayload struct {
	Text        string `json:"text"`
	Username    string `json:"username,omitempty"`
	Channel     string `json:"channel,omitempty"`
	Markdown    bool   `json:"mrkdwn"`
	UnfurlLinks bool   `json:"unfurl_links"`
	UnfurlMedia bool   `json:"unfurl_media"`
}
