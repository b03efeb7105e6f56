"""The pages that a browser shows: devices, searches with their fronts, measurements."""
