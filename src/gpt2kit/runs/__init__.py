"""A run's folder and what is drawn from it."""
