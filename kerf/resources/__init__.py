"""The resources of a client: the methods for each part of the REST interface."""
