"""What runs inside the guest: units, the first process, and the agent that runs the command and talks to the host."""
