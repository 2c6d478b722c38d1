"""Training objectives: the loss of a batch."""
