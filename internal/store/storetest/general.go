package storetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidelock.dev"
)

var generalTests = []test{
	{"can be read", func(w world) {
		w.ok(w.Ping(w.Context()))
	}},

	{"lists are empty, not nil", func(w world) {
		ctx := w.Context()
		equal(w, names(w, username)(w.Users(ctx, tidelock.UserFilter{}, everything)), "")
		equal(w, names(w, fullPath)(w.Namespaces(ctx, tidelock.NamespaceFilter{}, everything)), "")
		equal(w, names(w, projectPath)(w.Projects(ctx, tidelock.ProjectFilter{}, everything)), "")
		equal(w, names(w, tokenName)(w.Tokens(ctx, tidelock.TokenFilter{}, everything)), "")
		equal(w, names(w, pushID)(w.Pushes(ctx, tidelock.PushFilter{}, tidelock.Page{PerPage: 5})), "")
		equal(w, names(w, agentName)(w.Agents(ctx, tidelock.AgentFilter{}, tidelock.Page{PerPage: 5})), "")
		equal(w, names(w, numbered)(w.Announcements(ctx, tidelock.AnnouncementFilter{}, tidelock.Page{PerPage: 5})), "")
	}},

	{"a call that was cancelled fails and changes nothing", func(w world) {
		site := w.site()
		ctx, cancel := context.WithCancel(w.Context())
		cancel()
		_, err := w.RecordPush(ctx, tidelock.Push{Project: site.ID, Updates: []tidelock.RefUpdate{update("main", "", "c1")}})
		if !errors.Is(err, context.Canceled) {
			w.Fatalf("got error %v, want %v", err, context.Canceled)
		}
		_, err = w.Project(ctx, site.ID)
		if !errors.Is(err, context.Canceled) {
			w.Fatalf("got error %v, want %v", err, context.Canceled)
		}
		heads, err := w.Heads(w.Context(), site.ID)
		w.ok(err)
		equal(w, len(heads), 0)
	}},

	{"calls cancelled at any moment leave the store whole", func(w world) {
		site := w.site()
		for i := range 60 {
			ctx, cancel := context.WithTimeout(w.Context(), time.Duration(i*20)*time.Microsecond)
			push, err := w.RecordPush(ctx, tidelock.Push{Project: site.ID, Updates: []tidelock.RefUpdate{update("main", "", fmt.Sprint("c", i))}})
			cancel()
			if err == nil && push.ID == 0 {
				w.Fatal("got a push without an id")
			}
		}
		last := w.push(site.ID, "main=last")
		head, err := w.Head(w.Context(), site.ID, branch("main"))
		w.ok(err)
		equal(w, head.Push, last.ID)
		pushes, _, err := w.Pushes(w.Context(), tidelock.PushFilter{Project: site.ID}, everything)
		w.ok(err)
		for i, p := range pushes[:len(pushes)-1] {
			equal(w, p.Updates[0].Old, pushes[i+1].Updates[0].New)
		}
	}},

	{"eight writers and readers at once do not fail", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		for _, err := range together(8, func(i int) error {
			ctx := w.Context()
			for n := range 10 {
				name := fmt.Sprintf("u%d-%d", i, n)
				u, err := w.CreateUser(ctx, tidelock.User{Username: name})
				_, pushErr := w.RecordPush(ctx, tidelock.Push{Project: site.ID, Updates: []tidelock.RefUpdate{update("main", "", name)}})
				err = errors.Join(err, pushErr,
					w.SetMember(ctx, tidelock.Member{Holder: tidelock.Holder{Project: site.ID}, User: u.ID, Level: tidelock.Guest}),
					w.SaveAnnouncements(ctx, announcement(agent.ID, source, int64(n*8+i), tidelock.Sent)),
					w.SaveAgentSession(ctx, tidelock.AgentSession{Agent: agent.ID, Instance: name, ConnectedAt: start, LastSeen: start}),
				)
				_, _, usersErr := w.Users(ctx, tidelock.UserFilter{Search: "u"}, tidelock.Page{Number: 1, PerPage: 5})
				_, readErr := w.Head(ctx, site.ID, branch("main"))
				if err := errors.Join(err, usersErr, readErr); err != nil {
					return err
				}
			}
			return nil
		}) {
			w.ok(err)
		}
		_, n, err := w.Users(w.Context(), tidelock.UserFilter{}, tidelock.Page{PerPage: 1})
		w.ok(err)
		equal(w, n, 80)
	}},
}
