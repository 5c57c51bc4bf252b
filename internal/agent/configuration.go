package agent

import (
	"context"
	"fmt"

	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/flux"
)

// watchConfiguration takes the agent's configuration, live, as often as the
// server sends it. One that cannot be used changes nothing.
func (c *connection) watchConfiguration(ctx context.Context) error {
	stream, err := c.configuration.Watch(ctx, &agentrpc.WatchRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		c.configure(ctx, stream.Msg())
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return fmt.Errorf("the server ended it")
}

func (c *connection) configure(ctx context.Context, m *agentrpc.WatchResponse) {
	log := c.log.With("commit", m.Commit)
	if m.Error != "" {
		log.WarnContext(ctx, "the newest configuration file is not in force", "error", m.Error)
	}
	for _, warning := range m.Warnings {
		log.WarnContext(ctx, "configuration", "warning", warning)
	}
	config, _, err := agentrpc.ParseConfig([]byte(m.Yaml))
	if err == nil {
		err = c.flux().Configure(flux.Settings{
			WebhookURL: config.Flux.WebhookReceiverURL,
			Selector:   config.Flux.Selector,
		})
	}
	if err != nil {
		// The server has checked it, so one of us is of another version.
		log.ErrorContext(ctx, "configuration cannot be used; the one before stays", "error", err)
		return
	}
	if c.config.Level != nil {
		c.config.Level.Set(config.Level(c.baseLevel)) // what the file does not say stays as the flag said
	}
	log.InfoContext(ctx, "configuration in force", "webhook_receiver_url", config.Flux.WebhookReceiverURL, "selector", config.Flux.Selector)
}
