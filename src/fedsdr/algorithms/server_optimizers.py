"""Server rules: how the mean update D = sum_k p_k dR_k moves the global R.

A rule is a pair of pure functions, `init` and `update`. Each one below is its formula for one
tensor, in fp64; `_elementwise` applies it to every name and rounds to fp32 once, at the end. All
moments start at zero and nothing is corrected for that start (paper: Reddi et al., Adaptive
Federated Optimization, ICLR 2021, arXiv 2003.00295, algorithm 2).
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedsdr.algorithms.client_corrections import CorrectionName
from fedsdr.errors import UserError, choose, nearest
from fedsdr.tensors import Tensors, zeros_like

Memory = dict[str, Tensors]  # "m" and "v", over the names of R; what a checkpoint must keep


@dataclass(frozen=True)
class ServerRule:
    """`memory = init(R)` once, then `step, memory = update(D, memory)` and R += step each round.

    Nothing is changed in place; all results are fp32. `update` raises ValueError when the memory
    was made for other names or shapes than those of D.
    """

    name: str
    init: Callable[[Mapping[str, Tensor]], Memory]
    update: Callable[[Mapping[str, Tensor], Mapping[str, Tensors]], tuple[Tensors, Memory]]


def fedavg() -> ServerRule:
    """R += D (McMahan et al., 2017)."""

    def one(d: Tensor) -> tuple[Tensor]:
        return (d,)

    return _elementwise("fedavg", (), one)


def fedavgm(lr: float = 1.0, beta: float = 0.9) -> ServerRule:
    """m = beta m + D;  R += lr m (Hsu et al., 2019, arXiv 1909.06335)."""

    def one(d: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        m = beta * m + d
        return lr * m, m

    return _elementwise("fedavgm", ("m",), one)


def fedadagrad(lr: float = 1e-3, tau: float = 1e-3) -> ServerRule:
    """v += D^2;  R += lr D / (sqrt v + tau)."""

    def one(d: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = v + d.square()
        return lr * d / (v.sqrt() + tau), v

    return _elementwise("fedadagrad", ("v",), one)


def fedadam(lr: float = 1e-3, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> ServerRule:
    """m = b1 m + (1-b1) D;  v = b2 v + (1-b2) D^2;  R += lr m / (sqrt v + tau)."""

    def one(d: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = b1 * m + (1 - b1) * d
        v = b2 * v + (1 - b2) * d.square()
        return lr * m / (v.sqrt() + tau), m, v

    return _elementwise("fedadam", ("m", "v"), one)


def fedyogi(lr: float = 1e-3, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> ServerRule:
    """As FedAdam with v -= (1-b2) D^2 sign(v - D^2), which never takes v below zero."""

    def one(d: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = b1 * m + (1 - b1) * d
        v = v - (1 - b2) * d.square() * (v - d.square()).sign()
        return lr * m / (v.sqrt() + tau), m, v

    return _elementwise("fedyogi", ("m", "v"), one)


def _elementwise(
    name: str, slots: tuple[str, ...], one: Callable[..., tuple[Tensor, ...]]
) -> ServerRule:
    """Make a rule of `one(d, *moments) -> (step, *new moments)`; `slots` names the moments."""

    def init(tensors: Mapping[str, Tensor]) -> Memory:
        return {slot: zeros_like(tensors) for slot in slots}

    def update(
        delta: Mapping[str, Tensor], memory: Mapping[str, Tensors]
    ) -> tuple[Tensors, Memory]:
        for slot in slots:  # a smaller moment would be broadcast without a word
            if _shapes(memory[slot]) != _shapes(delta):
                raise ValueError(
                    f"{name}: memory '{slot}' and the update differ in names or shapes"
                )
        results = {
            key: one(d.double(), *(memory[slot][key].double() for slot in slots))
            for key, d in delta.items()
        }
        step, *moments = (
            {key: result[i].float() for key, result in results.items()}
            for i in range(1 + len(slots))
        )
        return step, dict(zip(slots, moments, strict=True))

    return ServerRule(name, init, update)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    return {name: x.shape for name, x in tensors.items()}


_RULES: dict[str, Callable[..., ServerRule]] = {
    "fedavg": fedavg,
    "fedavgm": fedavgm,
    "fedadagrad": fedadagrad,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
}


@dataclass(frozen=True)
class Algorithm:
    """A server rule and a local correction under the name that a user types.

    `hyper` names the hyperparameters of the server rule. FedProx's mu is not among them: it is
    the local correction's, and travels to the client in its settings.
    """

    name: str
    rule_name: str
    correction: CorrectionName = "none"

    @property
    def hyper(self) -> tuple[str, ...]:
        return tuple(inspect.signature(_RULES[self.rule_name]).parameters)


ALGORITHMS: dict[str, Algorithm] = {
    a.name: a
    for a in (
        Algorithm("fedavg", "fedavg"),
        Algorithm("fedavgm", "fedavgm"),
        Algorithm("fedprox", "fedavg", "fedprox"),
        Algorithm("scaffold", "fedavg", "scaffold"),
        Algorithm("fedadagrad", "fedadagrad"),
        Algorithm("fedadam", "fedadam"),
        Algorithm("fedyogi", "fedyogi"),
    )
}

# hyperparameter -> (whether a value is allowed, what is)
_BOUNDS: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda x: 0 < x < math.inf, "above 0"),
    "beta": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "b1": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "b2": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "tau": (lambda x: 0 < x < math.inf, "above 0"),
}


def server_rule(name: str, **hyper: float) -> ServerRule:
    """Return the server rule of an algorithm; hyperparameters left out keep their defaults.

    The server rule of `fedprox` and of `scaffold` is FedAvg's: what makes them differ is done at
    the client, and SCAFFOLD's server control variate is kept beside R. Raises UserError for an
    unknown name, for a hyperparameter that the rule does not have, and for one out of range.
    """
    algorithm = choose(name, ALGORITHMS, "algorithm.name")
    for key, value in hyper.items():
        if key not in algorithm.hyper:
            own = ", ".join(algorithm.hyper) or "none"
            raise UserError(
                f"algorithm.{key}: the server rule of '{name}' has no such hyperparameter "
                f"(it has: {own}){nearest(key, algorithm.hyper)}"
            )
        allowed, wanted = _BOUNDS[key]
        if not allowed(value):
            raise UserError(f"algorithm.{key}: is {value}; it must be {wanted}")
    return _RULES[algorithm.rule_name](**hyper)
