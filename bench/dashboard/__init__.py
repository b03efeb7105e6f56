"""Pages of the dashboard and queries of the latency database over a large database."""
