"""One self-contained page of runs and comparisons, and its curves."""
