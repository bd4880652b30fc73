"""Two low-rank branches on one frozen linear layer (paper, Eq. 6).

    h_out = W0 h + (alpha / r) B_R A_R h + (alpha / r) B_S A_S h

One switch per model says which branches are in the forward and which one is trained. Gradients
flow through a frozen branch to the layers below; only its factors get none.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsdr.errors import UserError
from fedsdr.models.forward_plan import ForwardPlan, plan_of
from fedsdr.models.fused_ops import LowRank
from fedsdr.models.target_modules import (
    describe_targets,
    is_conv1d,
    is_quantised,
    target_layers,
)
from fedsdr.seeds import seed_for
from fedsdr.tensors import Tensors
from fedsdr.types import Branch, R, S

BRANCHES: tuple[Branch, ...] = (R, S)


@dataclass
class Switch:
    """The current mode of all two-branch layers of a model.

    `dropout` applies to the trained branch. `weights` scale the output of branches (FedDPA); None
    means 1.
    """

    forward: tuple[Branch, ...] = ()
    trained: Branch | None = None
    dropout: float = 0.0
    weights: dict[Branch, float] | None = None


class TwoBranchLinear(nn.Module):
    """A frozen linear layer (plain or quantised) with the factors of both branches.

    A is (rank, in) and B is (out, rank), always fp32.
    """

    def __init__(self, base: nn.Module, switch: Switch, rank: int, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.switch = switch
        self.scaling = scaling
        if is_conv1d(base):
            in_features, out_features = self.weight.shape
        else:
            in_features, out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        device = next(base.parameters()).device

        def factors(*shape: int) -> nn.ParameterDict:
            return nn.ParameterDict(
                {b: nn.Parameter(torch.zeros(*shape, device=device)) for b in BRANCHES}
            )

        self.lora_A = factors(rank, in_features)
        self.lora_B = factors(out_features, rank)

    @property
    def weight(self) -> Tensor:
        """The base layer's weight: some models read its dtype or shape."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x).contiguous()
        switch = self.switch
        if not switch.forward:
            return out
        weights = switch.weights or {}
        # LowRank expects the trained branch last.
        order = sorted(switch.forward, key=lambda branch: branch == switch.trained)
        scales = [self.scaling * weights.get(branch, 1.0) for branch in order]
        trained = order[-1] == switch.trained
        return LowRank.apply(
            out,
            x,
            scales,
            switch.dropout if trained else 0.0,
            trained,
            *(self.lora_A[branch] for branch in order),
            *(self.lora_B[branch] for branch in order),
        )


class BranchedModel:
    """A base model with two branches on each target layer.

    Tensors are named `R/model.layers.0.self_attn.q_proj.lora_A` (and `S/`, `lora_B`).
    """

    def __init__(
        self, model: nn.Module, *, rank: int, alpha: float, target_modules: str | Sequence[str]
    ) -> None:
        """Freeze `model` and wrap its target layers in place.

        UserError as in `target_layers`. `description` says which layers are wrapped.
        """
        self.model = model
        self.switch = Switch()
        self.rank, self.alpha = rank, alpha
        model.requires_grad_(False)
        self.layers: dict[str, TwoBranchLinear] = {}
        targets = target_layers(model, target_modules)
        self.description = describe_targets(model, targets)
        for name in targets:
            base = model.get_submodule(name)
            self.layers[name] = TwoBranchLinear(base, self.switch, rank, alpha / rank)
            model.set_submodule(name, self.layers[name])

    @contextmanager
    def using(
        self,
        *forward: Branch,
        trained: Branch | None = None,
        dropout: float = 0.0,
        weights: dict[Branch, float] | None = None,
    ) -> Iterator[None]:
        """Within the context, these branches are in the forward and only `trained` has gradients.

        ValueError if `trained` is not in the forward.
        """
        if trained is not None and trained not in forward:
            raise ValueError(f"branch {trained} is trained but not in the forward")
        before = dict(vars(self.switch))
        vars(self.switch).update(forward=forward, trained=trained, dropout=dropout, weights=weights)
        for branch in BRANCHES:
            for parameter in self.parameters(branch).values():
                parameter.requires_grad_(branch == trained)
        try:
            yield
        finally:
            vars(self.switch).update(before)
            for branch in BRANCHES:
                for parameter in self.parameters(branch).values():
                    parameter.requires_grad_(False)
                    parameter.grad = None

    def parameters(self, branch: Branch) -> dict[str, nn.Parameter]:
        """Return the factors of one branch by name."""
        return {
            f"{branch}/{name}.{kind}": getattr(layer, kind)[branch]
            for name, layer in self.layers.items()
            for kind in ("lora_A", "lora_B")
        }

    def get(self, *branches: Branch) -> Tensors:
        """Return fp32 copies of the factors of these branches, on the CPU."""
        return {
            name: p.detach().cpu().clone()
            for branch in branches
            for name, p in self.parameters(branch).items()
        }

    @torch.no_grad()
    def set(self, values: Tensors) -> None:
        """Copy values into the factors of the same names; KeyError for an unknown name."""
        own = self.parameters(R) | self.parameters(S)
        for name, value in values.items():
            own[name].copy_(value)

    def on_device(self, values: Tensors) -> Tensors:
        """Return the values on the model's device."""
        device = next(self.model.parameters()).device
        return {name: value.to(device) for name, value in values.items()}

    def initial(self, branch: Branch, seed: int) -> Tensors:
        """Return initial factors: A uniform in ±1/sqrt(in), as in PEFT, and B zero.

        Each factor has its own seed, so the values do not depend on the set of target layers.
        """
        fresh: Tensors = {}
        for name, p in self.parameters(branch).items():
            value = torch.zeros(p.shape)
            if name.endswith("lora_A"):
                generator = torch.Generator().manual_seed(seed_for(seed, "init", name))
                nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
            fresh[name] = value
        return fresh

    @torch.no_grad()
    def merge(self, *branches: Branch) -> nn.Module:
        """Merge these branches into the base weights and return the plain model.

        W = W0 + (alpha / r) sum B A, computed in fp32. Cannot be undone. UserError on a quantised
        base.
        """
        for name, layer in self.layers.items():
            if is_quantised(layer.base):
                raise UserError("a quantised base cannot be merged; set model.quantize = 'none'")
            merged = layer.weight.float()
            for branch in branches:
                change = layer.scaling * (layer.lora_B[branch] @ layer.lora_A[branch])
                merged = merged + (change.t() if is_conv1d(layer.base) else change)
            layer.weight.copy_(merged)
            self.model.set_submodule(name, layer.base)
        if attention := plan_of(self.model).attention:
            self.model.set_attn_implementation(attention)  # type: ignore[operator]
        self.model.forward_plan = ForwardPlan(attention=attention)  # type: ignore[assignment]
        return self.model
