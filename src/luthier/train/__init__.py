"""The training step, optimisers, callbacks; checkpoint and resume."""
