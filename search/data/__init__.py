"""Labelled images: reading, splitting, and turning batches into network inputs."""
