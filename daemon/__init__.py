"""agentcgroupd: the privileged daemon that gives every tool call its own cgroup."""
