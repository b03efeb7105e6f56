"""What can be pruned in a network, and doing it: tracing, groups, channel removal, masks and folding."""
