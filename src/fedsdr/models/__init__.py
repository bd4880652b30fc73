"""Load a base model, put two branches on it, compute losses and generate text."""
