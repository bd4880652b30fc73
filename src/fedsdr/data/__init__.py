"""Data of each client: files and formats, partitioners, the held-out split, templates."""
