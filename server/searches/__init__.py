"""Search jobs: their states, checkpoints, candidates and events."""
