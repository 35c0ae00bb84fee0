"""The fast half of the launcher's door, in C; see door.h and agentcgroup.daemon.door.native."""
