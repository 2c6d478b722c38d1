"""Approaches or runs compared on the same rows."""
