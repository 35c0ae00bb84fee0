"""The scripts of the three agents: what each wants, in which order, and what it makes of the answers."""
