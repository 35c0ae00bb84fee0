"""Programs that agents run as tools: plain scripts, without anything of this project."""
