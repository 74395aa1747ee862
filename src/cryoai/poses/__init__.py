"""Finding poses: exhaustive search and local refinement (the encoder's place is here too)."""
