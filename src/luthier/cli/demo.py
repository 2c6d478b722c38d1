"""`luthier demo`."""
