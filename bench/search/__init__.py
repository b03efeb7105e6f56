"""Search methods against each other: operators alone on a published latency table."""
