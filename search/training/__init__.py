"""Training networks with SGD: from scratch, fine-tuning with zeros held, and what else a method asks of the steps."""
