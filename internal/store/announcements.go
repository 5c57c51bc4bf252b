package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"tidelock.dev"
)

const (
	announcementColumns = `a.agent_id, a.source, a.number, a.project_id, a.ref, a.commit_id, a.digest, a.push_id, a.state, a.message,
	COALESCE(p.trace, ''), COALESCE(p.pushed_at, 0), a.sent_at, a.announced_at, a.called_at, a.answered_at, a.handled_at, a.fetched_at, a.via, a.attempts`
	announcementTables = `announcements a LEFT JOIN pushes p ON p.id = a.push_id`
)

func scanAnnouncement(row scanner) (a tidelock.Announcement, err error) {
	err = row.Scan(&a.Agent, &a.Source, &a.Number, &a.Project, &a.Ref, &a.Commit, &a.Digest, &a.Push, &a.State, &a.Message, &a.Trace,
		(*instant)(&a.AcceptedAt), (*instant)(&a.SentAt), (*instant)(&a.AnnouncedAt), (*instant)(&a.CalledAt),
		(*instant)(&a.AnsweredAt), (*instant)(&a.HandledAt), (*instant)(&a.FetchedAt), &a.Via, &a.Attempts)
	return a, err
}

// keptAnnouncements is how many numbers of a source are kept.
const keptAnnouncements = 100

const (
	lockAgents = `SELECT id FROM agents WHERE id IN (%s) ORDER BY id`

	updateLatest = `
		UPDATE announcements
		SET project_id = ?, ref = ?, commit_id = ?, digest = ?, push_id = ?, state = ?, message = ?, sent_at = ?, announced_at = ?,
			called_at = ?, answered_at = ?, handled_at = ?, fetched_at = ?, via = ?, attempts = ?
		WHERE agent_id = ? AND source = ? AND number = ? AND latest`
	upsertAnnouncement = `
		INSERT INTO announcements (project_id, ref, commit_id, digest, push_id, state, message, sent_at, announced_at,
			called_at, answered_at, handled_at, fetched_at, via, attempts, agent_id, source, number, latest)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, TRUE)
		ON CONFLICT (agent_id, source, number) DO UPDATE
		SET project_id = excluded.project_id, ref = excluded.ref, commit_id = excluded.commit_id, digest = excluded.digest,
			push_id = excluded.push_id, state = excluded.state, message = excluded.message, sent_at = excluded.sent_at, announced_at = excluded.announced_at,
			called_at = excluded.called_at, answered_at = excluded.answered_at, handled_at = excluded.handled_at,
			fetched_at = excluded.fetched_at, via = excluded.via, attempts = excluded.attempts`
	unfinished         = `state NOT IN ('converged', 'gone', 'closed')`
	closeAnnouncements = `
		UPDATE announcements
		SET latest = FALSE,
			message = CASE WHEN ` + unfinished + ` THEN 'a newer announcement took its place' ELSE message END,
			state = CASE WHEN ` + unfinished + ` THEN 'closed' ELSE state END
		WHERE agent_id = ? AND source = ?
			AND number < (SELECT MAX(number) FROM announcements WHERE agent_id = ? AND source = ?)
			AND (latest OR ` + unfinished + `)`
	trimAnnouncements = `
		DELETE FROM announcements
		WHERE agent_id = ? AND source = ? AND number <= (
			SELECT number FROM announcements
			WHERE agent_id = ? AND source = ?
			ORDER BY number DESC
			LIMIT 1 OFFSET ?)`
)

// SaveAnnouncements writes announcements, closes those they replace, and
// forgets the oldest. Those of an agent that was deleted are dropped.
func (db *DB) SaveAnnouncements(ctx context.Context, given ...tidelock.Announcement) error {
	if len(given) == 0 {
		return nil
	}
	// In one order, so that newer rows get higher ids.
	sorted := slices.SortedStableFunc(slices.Values(given), func(a, b tidelock.Announcement) int {
		return cmp.Or(cmp.Compare(a.Agent, b.Agent), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Number, b.Number))
	})
	var agents []tidelock.AgentID
	for _, a := range sorted {
		agents = append(agents, a.Agent)
	}
	agents = slices.Compact(agents)

	return db.write(ctx, func(s session) error {
		living, err := many(ctx, s, "agents", func(row scanner) (id tidelock.AgentID, err error) {
			err = row.Scan(&id)
			return id, err
		}, fmt.Sprintf(lockAgents, s.in)+s.lockRow, idList(agents))
		if err != nil {
			return err
		}
		for rest := sorted; len(rest) > 0; {
			first := rest[0]
			n := slices.IndexFunc(rest, func(a tidelock.Announcement) bool {
				return a.Agent != first.Agent || a.Source != first.Source
			})
			if n < 0 {
				n = len(rest)
			}
			if _, lives := slices.BinarySearch(living, first.Agent); lives {
				if err := s.saveOfSource(ctx, rest[:n]); err != nil {
					return err
				}
			}
			rest = rest[n:]
		}
		return nil
	})
}

// saveOfSource saves announcements of one source in order of number. News of
// the latest number, which is most, changes nothing about the others.
func (s session) saveOfSource(ctx context.Context, announcements []tidelock.Announcement) error {
	onlyLatest := true
	for _, a := range announcements {
		args := []any{
			a.Project, []byte(a.Ref), a.Commit, a.Digest, a.Push, a.State, a.Message, a.SentAt, a.AnnouncedAt,
			a.CalledAt, a.AnsweredAt, a.HandledAt, a.FetchedAt, a.Via, a.Attempts, a.Agent, a.Source, a.Number,
		}
		n, err := s.exec(ctx, updateLatest, args...)
		if err == nil && n == 0 {
			onlyLatest = false
			_, err = s.exec(ctx, upsertAnnouncement, args...)
		}
		if err != nil {
			return fmt.Errorf("write announcement: %w", err)
		}
	}
	if onlyLatest {
		return nil
	}
	agent, source := announcements[0].Agent, announcements[0].Source
	if _, err := s.exec(ctx, closeAnnouncements, agent, source, agent, source); err != nil {
		return fmt.Errorf("close announcements: %w", err)
	}
	if _, err := s.exec(ctx, trimAnnouncements, agent, source, agent, source, keptAnnouncements); err != nil {
		return fmt.Errorf("trim announcements: %w", err)
	}
	return nil
}

func (db *DB) Announcements(ctx context.Context, f tidelock.AnnouncementFilter, p tidelock.Page) ([]tidelock.Announcement, int, error) {
	l := list{columns: announcementColumns, from: announcementTables, order: `a.id DESC`}
	if f.Agent != 0 {
		l.filter(`a.agent_id = ?`, f.Agent)
	}
	if f.Source != "" {
		l.filter(`a.source = ?`, f.Source)
	}
	if f.Project != 0 {
		l.filter(`a.project_id = ?`, f.Project)
	}
	if f.Commit != "" {
		l.filter(`a.commit_id = ?`, f.Commit)
	}
	if f.Digest != "" {
		l.filter(`a.digest = ?`, f.Digest)
	}
	if f.Push != 0 {
		l.filter(`a.push_id = ?`, f.Push)
	}
	if f.Latest {
		l.filter(`a.latest`)
	}
	return pageOf(ctx, db, "announcements", l, p, scanAnnouncement)
}
