"""What a model could do before and cannot any more: the general probe."""
