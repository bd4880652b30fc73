"""How aligned the clients of a run are, and what rewriting and averaging cost."""
