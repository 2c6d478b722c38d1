"""The data doctor: what is wrong with training data, before it costs a run."""
