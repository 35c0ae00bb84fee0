"""The contract between agents and the daemon: gRPC messages, the launcher's message, the syntax of quantities."""
