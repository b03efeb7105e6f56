"""What `kerf doctor` looks at."""
