"""Luthier: fine-tune language models, and prove that it was worth it."""

__version__ = "0.1.0"
