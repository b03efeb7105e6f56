"""What pruning a layer does to a network's loss, estimated layer by layer without evaluating a pruned network."""
