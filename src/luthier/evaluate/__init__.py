"""Perplexity, task metrics, comparisons, the report."""
