"""Formats -> conversations -> checks -> split -> tokens and loss mask -> batches."""
