"""What `make docs` adds to the pages in docs/: the reference, generated from code, and the repository's own pages."""
