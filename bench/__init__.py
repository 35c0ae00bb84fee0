"""Measurements of what users get: what a tool call costs, how many there can be, what the daemon takes at
rest.
"""
