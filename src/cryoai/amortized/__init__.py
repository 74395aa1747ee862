"""The amortised side: encoder and volume from scratch, an encoder on a map, posing with it, and its file."""
