"""Who listens to a run's events besides the terminal: files of its folder, TensorBoard, trackers."""
