"""Passages of documents, found by their words and by their meaning."""
