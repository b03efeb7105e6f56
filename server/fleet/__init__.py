"""Devices, and the leases by which they get work."""
