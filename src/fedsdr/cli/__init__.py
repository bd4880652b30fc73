"""One file a command; `main.py` puts them together."""
