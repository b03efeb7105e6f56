"""What load a server holds: agents that wait, leases and reports, measurements in batches, and all at once."""
