"""Gold-standard refinement: half-maps, masks, poses, global search, confidence, and the rounds that join them."""
