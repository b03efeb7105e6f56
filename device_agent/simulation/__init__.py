"""Simulated fleets: many devices with noise, heat, faults and bad connections, for tests, demonstrations and load."""
