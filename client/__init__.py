"""Everything on the agent's side of the socket: SDK, CLI, native launcher."""
