"""The gRPC edge and the launcher's door: sockets, identities, translation."""
