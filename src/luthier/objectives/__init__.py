"""What is learned from a batch: the loss that training lowers, and what it needs around it."""
