"""Several ways or several runs side by side, on the same rows."""
