"""The whole run: the pipeline as a list of its steps, inference, reading, checks, the result and its files."""
