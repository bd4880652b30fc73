"""Blind verdicts of a judge model on the answers of several runs."""
