"""The base model, its two low-rank branches, losses of token rows, and text generation."""
