"""The Python API, a page: runs and comparisons as objects with tables; see docs/python.md."""
