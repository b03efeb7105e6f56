"""Kerf's device agent: leases measurement tasks from a server, runs them, reports what it saw."""

__version__ = "0.1.0"
