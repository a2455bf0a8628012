"""A run's folder, and its curves and report."""
