package forge

import (
	"context"

	"tidelock.dev"
)

// AgentsOf lists the agents that a project configures, for the server's own
// use.
func (f *Forge) AgentsOf(ctx context.Context, project tidelock.ProjectID) ([]tidelock.Agent, error) {
	agents, _, err := f.store.Agents(ctx, tidelock.AgentFilter{Project: project}, tidelock.Page{})
	return agents, err
}

// LatestAnnouncements lists the newest announcement of each source of an
// agent, or of all agents when the id is 0, for the server's own use.
func (f *Forge) LatestAnnouncements(ctx context.Context, agent tidelock.AgentID) ([]tidelock.Announcement, error) {
	list, _, err := f.store.Announcements(ctx, tidelock.AnnouncementFilter{Agent: agent, Latest: true}, tidelock.Page{})
	return list, err
}

// SaveAgentSources keeps how things stand with sources of an agent, and
// forgets those that were removed.
func (f *Forge) SaveAgentSources(ctx context.Context, agent tidelock.AgentID, upserts []tidelock.AgentSource, removals []tidelock.SourceID) error {
	if err := f.store.SaveAgentSources(ctx, agent, upserts, removals); err != nil {
		return err
	}
	// What is seen of a source, and of what applies it, belongs to the project.
	led := map[tidelock.ProjectID]bool{0: true}
	for _, s := range upserts {
		if !led[s.Project] {
			led[s.Project] = true
			publish(f, tidelock.Observed{Project: s.Project})
		}
	}
	return nil
}

// SourcesOf lists the sources of an agent, for the server's own use.
func (f *Forge) SourcesOf(ctx context.Context, agent tidelock.AgentID) ([]tidelock.AgentSource, error) {
	return f.store.AgentSources(ctx, agent)
}
