"""Pure tensor maths: aggregation, server optimizers, local corrections, compression, noise."""

from fedsdr.algorithms.server_optimizers import (
    ALGORITHMS,
    Algorithm,
    ServerOptimizer,
    server_optimizer,
)

__all__ = ["ALGORITHMS", "Algorithm", "ServerOptimizer", "server_optimizer"]
