"""From particles to a map: bootstrap, refinement, masks, checkpoints and the pipeline."""
