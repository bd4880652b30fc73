"""Two low-rank branches on one frozen linear layer (paper, Eq. 6).

    h_out = W0 h + (alpha / r) B_R A_R h + (alpha / r) B_S A_S h      (rsLoRA: alpha / sqrt(r))

One switch says which branches are in the forward and which one is trained. Gradients flow through
a frozen branch to the layers below; only its factors get none.

Several clients can share a forward pass: the base's matmul is one for all tokens, and the tokens of
each client go through its own branches (`beside`, `running`), as in S-LoRA and Punica.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from fedsdr.config import LoraConfig
from fedsdr.errors import UserError, choose
from fedsdr.models.forward_plan import ForwardPlan, plan_of
from fedsdr.models.fused_ops import LowRank, Part
from fedsdr.models.lora_layers import INITS, check_patterns, of_layer, scale_of
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
NO_PATTERN: Mapping[str, int] = {}


@dataclass
class Switch:
    """The current mode of all two-branch layers of a model.

    `dropout` applies to the trained branch; its masks come from `generator`, or PyTorch's own.
    `weights` scale the output of branches (FedDPA); None means 1.
    """

    forward: tuple[Branch, ...] = ()
    trained: Branch | None = None
    dropout: float = 0.0
    weights: dict[Branch, float] | None = None
    generator: torch.Generator | None = None


# Whose branches run, and through how many of the next tokens; None: all of them.
Segment = tuple["BranchedModel", int | None]


class TwoBranchLinear(nn.Module):
    """A frozen linear layer (plain or quantised), and the branches that run through it."""

    def __init__(self, name: str, base: nn.Module, segments: Sequence[Segment]) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.segments = segments

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of inputs and outputs."""
        if is_conv1d(self.base):
            inputs, outputs = self.weight.shape
            return inputs, outputs
        return int(self.base.in_features), int(self.base.out_features)  # type: ignore[arg-type]

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
        total = out.numel() // out.shape[-1]
        parts, factors, start = [], [], 0
        for branches, tokens in self.segments:
            stop = total if tokens is None else start + tokens
            if branches.switch.forward:
                part, own = branches.part(self.name, slice(start, stop))
                parts.append(part)
                factors += own
            start = stop
        if start != total:
            raise ValueError(f"{self.name}: {total} tokens, but the segments have {start}")
        return LowRank.apply(out, x, parts, *factors) if parts else out


class BranchedModel:
    """A base model with two branches on each target layer, or one client's branches on it.

    Tensors are named `R/model.layers.0.self_attn.q_proj.lora_A` (and `S/`, `lora_B`).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int,
        alpha: float,
        target_modules: str | Sequence[str],
        rslora: bool = False,
        rank_pattern: Mapping[str, int] = NO_PATTERN,
        alpha_pattern: Mapping[str, float] = NO_PATTERN,
        init: str = "kaiming",
    ) -> None:
        """Freeze `model` and wrap its target layers in place.

        The keywords are those of `[lora]`. UserError as in `target_layers`, and for a pattern that
        matches none of them. `description` says which layers are wrapped.
        """
        self.model = model
        self.switch = Switch()
        self.rank, self.alpha, self.init = rank, alpha, init
        self.segments: list[Segment] = [(self, None)]
        model.requires_grad_(False)
        self.layers: dict[str, TwoBranchLinear] = {}
        targets = target_layers(model, target_modules)
        self.description = describe_targets(model, targets)
        for name in targets:
            base = model.get_submodule(name)
            self.layers[name] = TwoBranchLinear(name, base, self.segments)
            model.set_submodule(name, self.layers[name])
        check_patterns(rank_pattern, self.layers, "lora.rank_pattern")
        check_patterns(alpha_pattern, self.layers, "lora.alpha_pattern")
        self.ranks = {name: of_layer(rank_pattern, name, rank) for name in self.layers}
        self.scales = {
            name: scale_of(of_layer(alpha_pattern, name, alpha), self.ranks[name], rslora)
            for name in self.layers
        }
        self.factors = self._zero_factors()

    def _zero_factors(self) -> dict[str, nn.Parameter]:
        """Return fp32 factors of both branches: A is (rank, in) and B is (out, rank)."""
        factors = {}
        for branch in BRANCHES:
            for name, layer in self.layers.items():
                device, (inputs, outputs) = layer.weight.device, layer.sizes
                rank = self.ranks[name]
                a, b = torch.zeros(rank, inputs), torch.zeros(outputs, rank)
                factors[f"{branch}/{name}.lora_A"] = nn.Parameter(a.to(device))
                factors[f"{branch}/{name}.lora_B"] = nn.Parameter(b.to(device))
        return factors

    def beside(self) -> "BranchedModel":
        """Return the branches of another client on the same layers, all zero and off."""
        other = copy.copy(self)
        other.switch, other.factors = Switch(), self._zero_factors()
        return other

    @contextmanager
    def running(self, *segments: Segment) -> Iterator[None]:
        """Within the context, the tokens of a forward pass go through these branches in turn.

        Without segments all tokens go through those of this model.
        """
        before = list(self.segments)
        self.segments[:] = segments or [(self, None)]
        try:
            yield
        finally:
            self.segments[:] = before

    def generators(self) -> list[torch.Generator]:
        """Return the generators of the dropout masks of the running branches."""
        found = [branches.switch.generator for branches, _ in self.segments]
        return [generator for generator in found if generator]

    def part(self, layer: str, tokens: slice) -> tuple[Part, list[nn.Parameter]]:
        """Return how some tokens run through the branches at a layer, and their As and Bs."""
        switch, weights = self.switch, self.switch.weights or {}
        # LowRank expects the trained branch last.
        order = sorted(switch.forward, key=lambda branch: branch == switch.trained)
        trained = order[-1] == switch.trained
        part = Part(
            tokens=tokens,
            scales=[self.scales[layer] * weights.get(branch, 1.0) for branch in order],
            trained=trained,
            dropout=switch.dropout if trained else 0.0,
            generator=switch.generator,
        )
        kinds = ("lora_A", "lora_B")
        return part, [self.factors[f"{b}/{layer}.{kind}"] for kind in kinds for b in order]

    @contextmanager
    def using(
        self,
        *forward: Branch,
        trained: Branch | None = None,
        dropout: float = 0.0,
        weights: dict[Branch, float] | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[None]:
        """Within the context, these branches are in the forward and only `trained` has gradients.

        ValueError if `trained` is not in the forward.
        """
        if trained is not None and trained not in forward:
            raise ValueError(f"branch {trained} is trained but not in the forward")
        before = dict(vars(self.switch))
        new = Switch(forward, trained, dropout, weights, generator)
        vars(self.switch).update(vars(new))
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
        return {name: p for name, p in self.factors.items() if name.startswith(branch)}

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
        for name, value in values.items():
            self.factors[name].copy_(value)

    def on_device(self, values: Tensors) -> Tensors:
        """Return the values on the model's device."""
        device = next(self.model.parameters()).device
        return {name: value.to(device) for name, value in values.items()}

    def initial(self, branch: Branch, seed: int) -> Tensors:
        """Return initial factors: A as `INITS` says, and B zero.

        Each factor has its own seed, so the values do not depend on the set of target layers.
        """
        fresh: Tensors = {}
        for name, p in self.parameters(branch).items():
            value = torch.zeros(p.shape)
            if name.endswith("lora_A"):
                generator = torch.Generator().manual_seed(seed_for(seed, "init", name))
                choose(self.init, INITS, "lora.init")(value, generator)
            fresh[name] = value
        return fresh

    @torch.no_grad()
    def merge(self, *branches: Branch) -> nn.Module:
        """Merge these branches into the base weights and return the plain model.

        W = W0 + scale sum B A, computed in fp32. Cannot be undone. UserError on a quantised
        base.
        """
        for name, layer in self.layers.items():
            if is_quantised(layer.base):
                raise UserError("a quantised base cannot be merged; set model.quantize = 'none'")
            merged = layer.weight.float()
            for branch in branches:
                b, a = (self.factors[f"{branch}/{name}.lora_{kind}"] for kind in "BA")
                change = self.scales[name] * (b @ a)
                merged = merged + (change.t() if is_conv1d(layer.base) else change)
            layer.weight.copy_(merged)
            self.model.set_submodule(name, layer.base)
        if attention := plan_of(self.model).attention:
            self.model.set_attn_implementation(attention)  # type: ignore[operator]
        self.model.forward_plan = ForwardPlan(attention=attention)  # type: ignore[assignment]
        return self.model


def with_branches(model: nn.Module, lora: LoraConfig) -> BranchedModel:
    """Return a model with the branches of a configuration; UserErrors as of `BranchedModel`."""
    keys = {f.name: getattr(lora, f.name) for f in fields(lora) if f.name != "dropout"}
    return BranchedModel(model, **keys)
