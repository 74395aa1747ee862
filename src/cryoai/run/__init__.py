"""What every stage of a run is given: options, checkpoints, and somebody to tell how far it is."""
