package storetest

import (
	"fmt"
	"time"

	"tidelock.dev"
)

const source tidelock.SourceID = "GitRepository/flux-system/site"

func announcement(agent tidelock.AgentID, source tidelock.SourceID, number int64, state tidelock.AnnouncementState) tidelock.Announcement {
	return tidelock.Announcement{Agent: agent, Source: source, Number: number, State: state}
}

func numbered(a tidelock.Announcement) string { return fmt.Sprintf("%d:%s", a.Number, a.State) }

var announcementTests = []test{
	{"are read as they were saved", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		push, err := w.RecordPush(w.Context(), tidelock.Push{
			Project: site.ID, Trace: "00-a-b-01", Updates: []tidelock.RefUpdate{update("main", "", "c1")},
		})
		w.ok(err)
		want := tidelock.Announcement{
			Agent: agent.ID, Source: source, Number: 12, Project: site.ID, Ref: "refs/heads/m\xffin", Commit: "c1", Digest: "sha256:d1", Push: push.ID,
			State: tidelock.Parked, Message: "suspended",
			SentAt: at(1), AnnouncedAt: at(2 * time.Microsecond), CalledAt: at(3 * time.Microsecond), AnsweredAt: at(4 * time.Microsecond),
			HandledAt: at(5 * time.Microsecond), FetchedAt: at(6 * time.Microsecond), Via: "receiver", Attempts: 3,
		}
		w.ok(w.SaveAnnouncements(w.Context(), want))
		want.AcceptedAt, want.Trace = push.At, push.Trace
		read := func(want ...tidelock.Announcement) {
			w.Helper()
			got, n, err := w.Announcements(w.Context(), tidelock.AnnouncementFilter{}, everything)
			w.ok(err)
			equal(w, n, len(want))
			equal(w, got, want)
		}
		read(want)
		changed := tidelock.Announcement{Agent: agent.ID, Source: source, Number: 12, State: tidelock.Handled, Trace: "x", AcceptedAt: start.Add(time.Hour)}
		w.ok(w.SaveAnnouncements(w.Context(), changed))
		changed.Trace, changed.AcceptedAt = "", time.Time{} // of no push
		read(changed)
	}},

	{"close those they replace", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		save := func(want string, number int64, state tidelock.AnnouncementState) {
			w.Helper()
			w.ok(w.SaveAnnouncements(w.Context(), announcement(agent.ID, source, number, state)))
			equal(w, names(w, numbered)(w.Announcements(w.Context(), tidelock.AnnouncementFilter{Source: source}, everything)), want)
		}
		w.ok(w.SaveAnnouncements(w.Context(), announcement(agent.ID, "GitRepository/a/other", 1, tidelock.Sent)))
		save("1:sent", 1, tidelock.Sent)
		save("2:delivered 1:closed", 2, tidelock.Delivered)
		save("2:converged 1:closed", 2, tidelock.Converged)
		save("3:failed 2:converged 1:closed", 3, tidelock.Failed)
		save("4:parked 3:closed 2:converged 1:closed", 4, tidelock.Parked)
		save("5:gone 4:closed 3:closed 2:converged 1:closed", 5, tidelock.Gone)
		save("6:handled 5:gone 4:closed 3:closed 2:converged 1:closed", 6, tidelock.Handled)
		// Late news of an older number does not open it again.
		save("6:handled 5:gone 4:closed 3:closed 2:converged 1:closed", 4, tidelock.Delivered)
		save("6:handled 5:gone 4:converged 3:closed 2:converged 1:closed", 4, tidelock.Converged)

		closed, _, err := w.Announcements(w.Context(), tidelock.AnnouncementFilter{Source: source}, everything)
		w.ok(err)
		if closed[3].Message == "" {
			w.Fatal("a closed announcement does not say why")
		}
		others, _, err := w.Announcements(w.Context(), tidelock.AnnouncementFilter{Source: "GitRepository/a/other"}, everything)
		w.ok(err)
		equal(w, others, []tidelock.Announcement{announcement(agent.ID, "GitRepository/a/other", 1, tidelock.Sent)})
	}},

	{"are saved many at once", func(w world) {
		site := w.site()
		one, two := w.agent(site.ID, "one"), w.agent(site.ID, "two")
		w.ok(w.SaveAnnouncements(w.Context()))
		w.ok(w.SaveAnnouncements(w.Context(),
			announcement(two.ID, source, 3, tidelock.Sent),
			announcement(one.ID, source, 2, tidelock.Sent),
			announcement(two.ID, source, 1, tidelock.Sent),
			announcement(99, source, 1, tidelock.Sent), // an agent deleted meanwhile
			announcement(one.ID, "GitRepository/a/b", 1, tidelock.Sent),
			announcement(two.ID, source, 2, tidelock.Converged),
		))
		list := func(agent tidelock.AgentID) string {
			return names(w, numbered)(w.Announcements(w.Context(), tidelock.AnnouncementFilter{Agent: agent, Source: source}, everything))
		}
		equal(w, list(one.ID), "2:sent")
		equal(w, list(two.ID), "3:sent 2:converged 1:closed")
		equal(w, list(99), "")
	}},

	{"are kept to the newest hundred of a source", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		w.ok(w.SaveAnnouncements(w.Context(), announcement(agent.ID, "GitRepository/a/b", 1, tidelock.Sent)))
		var batch []tidelock.Announcement
		for n := range int64(103) {
			batch = append(batch, announcement(agent.ID, source, 1000+n*10, tidelock.Sent))
		}
		w.ok(w.SaveAnnouncements(w.Context(), batch...))
		list, n, err := w.Announcements(w.Context(), tidelock.AnnouncementFilter{Source: source}, everything)
		w.ok(err)
		equal(w, n, 100)
		equal(w, list[0].Number, 2020)
		equal(w, list[99].Number, 1030)
		w.ok(w.SaveAnnouncements(w.Context(), announcement(agent.ID, source, 2021, tidelock.Sent)))
		list, n, err = w.Announcements(w.Context(), tidelock.AnnouncementFilter{Source: source}, everything)
		w.ok(err)
		equal(w, n, 100)
		equal(w, list[99].Number, 1040)
		_, n, err = w.Announcements(w.Context(), tidelock.AnnouncementFilter{}, everything)
		w.ok(err)
		equal(w, n, 101)
	}},

	{"are listed by filter", func(w world) {
		site := w.site()
		one, two := w.agent(site.ID, "one"), w.agent(site.ID, "two")
		push := w.push(site.ID, "main=c1")
		with := func(a tidelock.Announcement, commit tidelock.CommitID) tidelock.Announcement {
			a.Project, a.Push, a.Commit = site.ID, push.ID, commit
			return a
		}
		for _, a := range []tidelock.Announcement{
			announcement(one.ID, source, 1, tidelock.Converged),
			with(announcement(one.ID, source, 2, tidelock.Converged), "c1"),
			announcement(one.ID, source, 3, tidelock.Sent),
			with(announcement(one.ID, "GitRepository/a/b", 4, tidelock.Sent), "c1"),
			with(announcement(two.ID, source, 5, tidelock.Sent), "c2"),
			{Agent: two.ID, Source: "OCIRepository/a/b", Number: 6, State: tidelock.Sent, Digest: "sha256:d1"},
		} {
			w.ok(w.SaveAnnouncements(w.Context(), a))
		}
		for _, tt := range []struct {
			filter tidelock.AnnouncementFilter
			want   string
		}{
			{tidelock.AnnouncementFilter{}, "6:sent 5:sent 4:sent 3:sent 2:converged 1:converged"},
			{tidelock.AnnouncementFilter{Agent: one.ID}, "4:sent 3:sent 2:converged 1:converged"},
			{tidelock.AnnouncementFilter{Agent: one.ID, Source: source}, "3:sent 2:converged 1:converged"},
			{tidelock.AnnouncementFilter{Project: site.ID}, "5:sent 4:sent 2:converged"},
			{tidelock.AnnouncementFilter{Push: push.ID}, "5:sent 4:sent 2:converged"},
			{tidelock.AnnouncementFilter{Commit: "c1"}, "4:sent 2:converged"},
			{tidelock.AnnouncementFilter{Digest: "sha256:d1"}, "6:sent"},
			{tidelock.AnnouncementFilter{Latest: true}, "6:sent 5:sent 4:sent 3:sent"},
			{tidelock.AnnouncementFilter{Latest: true, Agent: one.ID}, "4:sent 3:sent"},
			// The newest number of a source, not the newest that fits.
			{tidelock.AnnouncementFilter{Latest: true, Commit: "c1"}, "4:sent"},
			{tidelock.AnnouncementFilter{Source: "GitRepository/A/b"}, ""},
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, numbered)(w.Announcements(w.Context(), tt.filter, everything)), tt.want)
		}
		paged(w, 6, numbered, func(p tidelock.Page) ([]tidelock.Announcement, int, error) {
			return w.Announcements(w.Context(), tidelock.AnnouncementFilter{}, p)
		})
		w.ok(w.DeleteAgent(w.Context(), one.ID))
		equal(w, names(w, numbered)(w.Announcements(w.Context(), tidelock.AnnouncementFilter{}, everything)), "6:sent 5:sent")
	}},

	{"saved at once in any order leave the newest open", func(w world) {
		site := w.site()
		one, two := w.agent(site.ID, "one"), w.agent(site.ID, "two")
		for _, err := range together(8, func(i int) error {
			for n := range int64(10) {
				batch := []tidelock.Announcement{
					announcement(one.ID, source, n*8+int64(i)+1, tidelock.Sent),
					announcement(two.ID, source, n*8+int64(i)+1, tidelock.Sent),
				}
				if i%2 == 0 {
					batch[0], batch[1] = batch[1], batch[0]
				}
				if err := w.SaveAnnouncements(w.Context(), batch...); err != nil {
					return err
				}
			}
			return nil
		}) {
			w.ok(err)
		}
		for _, agent := range []tidelock.AgentID{one.ID, two.ID} {
			list, n, err := w.Announcements(w.Context(), tidelock.AnnouncementFilter{Agent: agent}, everything)
			w.ok(err)
			equal(w, n, 80)
			for _, a := range list {
				want := tidelock.Closed
				if a.Number == 80 {
					want = tidelock.Sent
				}
				equal(w, a.State, want)
			}
			equal(w, names(w, numbered)(w.Announcements(w.Context(), tidelock.AnnouncementFilter{Agent: agent, Latest: true}, everything)), "80:sent")
		}
	}},
}
