// Package agentserver is the forge's end of the agents' connections. It owns
// who is connected, the delivery of their configuration, the announcement
// streams and the observation streams: it turns hints from the bus into "the
// head of your source's ref is this commit now", what agents answer into the
// record of each announcement, and what they see of Flux into observations.
//
// It decides nothing: whom a token stands for, which projects an agent may be
// told of and what a ref means are questions it asks forge. It keeps nothing
// that cannot be read again: an agent sends its sources anew on every stream,
// and whatever differs from the heads is announced.
//
//	server, err := agentserver.New(agentserver.Config{Forge: f, Log: log, …})
//	mux.Handle(agentserver.Path, server)
//	err = server.Run(ctx)
package agentserver
