"""The federated round (start with round.py), what an update must satisfy, and the checkpoint."""
