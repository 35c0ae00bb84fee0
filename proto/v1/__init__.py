"""Version 1 of the gRPC API, generated from the .proto files beside this one by `make generate`."""
