"""The stages of a search, one module each, in the order of `server.states.JobStage`."""
