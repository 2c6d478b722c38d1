"""A search for better settings: trials of one recipe, chosen by Optuna, judged on rows apart."""
