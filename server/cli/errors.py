"""What commands raise for input that a user can correct."""

from __future__ import annotations


class ConfigFileError(Exception):
    """The config file, or a file that it names, cannot be used. The text says which, and what to do."""
