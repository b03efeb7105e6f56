"""The worker: a process that carries search jobs from stage to stage."""
