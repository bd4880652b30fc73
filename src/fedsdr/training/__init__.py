"""Methods as values, one optimizer step, and one client's local work."""
