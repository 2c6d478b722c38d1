"""Should this be fine-tuned, and which way: questions in, an answer with its reasons out."""
