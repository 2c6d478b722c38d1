"""A run as one page that a manager can read."""
