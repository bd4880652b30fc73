"""Pure tensor maths: server rules, local corrections, and what averaging factors costs."""

from fedsdr.algorithms.server_optimizers import ALGORITHMS, Algorithm, ServerRule, server_rule

__all__ = ["ALGORITHMS", "Algorithm", "ServerRule", "server_rule"]
