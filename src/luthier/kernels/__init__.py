"""The fast paths of training, each with its slow reference."""
