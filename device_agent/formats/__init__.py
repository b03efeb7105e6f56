"""Files that carry networks: pure functions from plans and arrays to bytes, and back."""
