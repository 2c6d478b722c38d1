"""Whether to fine-tune, and by which method: answers in, advice with its reasons out."""
