"""The command line `agentcg`, except `agentcg run`, which is native (client/launcher)."""
