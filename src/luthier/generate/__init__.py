"""Batched generation and chat."""
