"""The network zoo as plain torch modules, and reading their checkpoints."""
