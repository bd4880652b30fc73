"""Server optimizers: how the pseudo-gradient D = sum_k p_k dR_k moves the global R.

An optimizer is a pair of pure functions, `init` and `update`, as in optax. Each function below
states its formula for one tensor in fp64; `_elementwise` applies it to every name and rounds to
fp32 once, at the end. All moments start at zero, without bias correction (Reddi et al., Adaptive
Federated Optimization, ICLR 2021, arXiv 2003.00295, algorithm 2).

To add an algorithm, write a function and its line in ALGORITHMS.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedsdr.algorithms.client_corrections import CorrectionName
from fedsdr.errors import UserError, choose, nearest
from fedsdr.tensors import Tensors, difference_in_spec, zeros_like

OptimizerState = dict[str, Tensors]  # moment ("m", "v") -> its tensors, over the names of R


@dataclass(frozen=True)
class ServerOptimizer:
    """A pair of pure functions: `init(R) -> state` and `update(D, state) -> (step, new state)`.

    The server computes R += step each round. Nothing is changed in place; all results are fp32.
    `update` raises ValueError when the state has other names or shapes than D.
    """

    init: Callable[[Mapping[str, Tensor]], OptimizerState]
    update: Callable[[Mapping[str, Tensor], Mapping[str, Tensors]], tuple[Tensors, OptimizerState]]


def fedavg() -> ServerOptimizer:
    """Take the pseudo-gradient as the step: R += D.

    Reference: McMahan et al., AISTATS 2017, arXiv 1602.05629.
    """

    def one(d: Tensor) -> tuple[Tensor]:
        return (d,)

    return _elementwise((), one)


def fedavgm(lr: float = 1.0, beta: float = 0.9) -> ServerOptimizer:
    """Momentum: m = beta m + D;  R += lr m.

    Args:
      lr: server learning rate.
      beta: momentum.

    Reference: Hsu et al., 2019, arXiv 1909.06335.
    """

    def one(d: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        m = beta * m + d
        return lr * m, m

    return _elementwise(("m",), one)


def fedadagrad(lr: float = 1e-3, tau: float = 1e-3) -> ServerOptimizer:
    """Adagrad: v += D^2;  R += lr D / (sqrt v + tau).

    Args:
      lr: server learning rate.
      tau: degree of adaptivity, added to sqrt v.

    Reference: Reddi et al., ICLR 2021, arXiv 2003.00295.
    """

    def one(d: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = v + d.square()
        return lr * d / (v.sqrt() + tau), v

    return _elementwise(("v",), one)


def fedadam(
    lr: float = 1e-3, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> ServerOptimizer:
    """Adam: m = b1 m + (1-b1) D;  v = b2 v + (1-b2) D^2;  R += lr m / (sqrt v + tau).

    Args:
      lr: server learning rate.
      b1: decay of the first moment.
      b2: decay of the second moment.
      tau: degree of adaptivity, added to sqrt v.

    Reference: Reddi et al., ICLR 2021, arXiv 2003.00295.
    """

    def one(d: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = b1 * m + (1 - b1) * d
        v = b2 * v + (1 - b2) * d.square()
        return lr * m / (v.sqrt() + tau), m, v

    return _elementwise(("m", "v"), one)


def fedyogi(
    lr: float = 1e-3, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> ServerOptimizer:
    """Yogi: as `fedadam` with v -= (1-b2) D^2 sign(v - D^2), which never takes v below zero.

    Args: as `fedadam`.

    Reference: Reddi et al., ICLR 2021, arXiv 2003.00295.
    """

    def one(d: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = b1 * m + (1 - b1) * d
        v = v - (1 - b2) * d.square() * (v - d.square()).sign()
        return lr * m / (v.sqrt() + tau), m, v

    return _elementwise(("m", "v"), one)


def _elementwise(
    moments: tuple[str, ...], one: Callable[..., tuple[Tensor, ...]]
) -> ServerOptimizer:
    """Make an optimizer of `one(d, *moments) -> (step, *new moments)`, applied to each tensor."""

    def init(tensors: Mapping[str, Tensor]) -> OptimizerState:
        return {moment: zeros_like(tensors) for moment in moments}

    def update(
        delta: Mapping[str, Tensor], state: Mapping[str, Tensors]
    ) -> tuple[Tensors, OptimizerState]:
        for moment in moments:  # PyTorch would broadcast a smaller one
            if difference := difference_in_spec(state[moment], zeros_like(delta)):
                raise ValueError(f"optimizer state '{moment}' {difference}")
        results = {
            name: one(d.double(), *(state[moment][name].double() for moment in moments))
            for name, d in delta.items()
        }
        step, *after = (
            {name: result[i].float() for name, result in results.items()}
            for i in range(1 + len(moments))
        )
        return step, dict(zip(moments, after, strict=True))

    return ServerOptimizer(init, update)


@dataclass(frozen=True)
class Algorithm:
    """A server optimizer and a local correction. FedProx's mu belongs to the correction and travels
    to the client in its settings, so it is not among the hyperparameters of the optimizer."""

    server_optimizer: Callable[..., ServerOptimizer]
    correction: CorrectionName = "none"

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """The names of the server optimizer's hyperparameters."""
        return tuple(inspect.signature(self.server_optimizer).parameters)


ALGORITHMS: dict[str, Algorithm] = {
    "fedavg": Algorithm(fedavg),
    "fedavgm": Algorithm(fedavgm),
    "fedprox": Algorithm(fedavg, "fedprox"),
    "scaffold": Algorithm(fedavg, "scaffold"),
    "fedadagrad": Algorithm(fedadagrad),
    "fedadam": Algorithm(fedadam),
    "fedyogi": Algorithm(fedyogi),
}


def server_optimizer(name: str, **hyperparameters: float) -> ServerOptimizer:
    """Return the server optimizer of an algorithm; hyperparameters left out keep their defaults.

    Raises UserError for an unknown name, or a hyperparameter that the optimizer does not have.
    """
    algorithm = choose(name, ALGORITHMS, "algorithm.name")
    for key in hyperparameters:
        if key not in algorithm.hyperparameters:
            own = ", ".join(algorithm.hyperparameters) or "none"
            raise UserError(
                f"algorithm.{key}: the server optimizer of '{name}' has no such hyperparameter "
                f"(it has: {own}){nearest(key, algorithm.hyperparameters)}"
            )
    return algorithm.server_optimizer(**hyperparameters)
