"""Particle stacks: reading, judging, caching, simulating."""
