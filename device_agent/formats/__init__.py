"""Network files that a device can load."""
