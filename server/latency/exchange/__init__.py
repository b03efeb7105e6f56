"""Latencies in files: import of tables that others measured, and export of ours."""
