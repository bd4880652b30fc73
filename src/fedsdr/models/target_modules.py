"""Choose the layers that get branches, and say which ones do and do not."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional

from fedsdr.errors import UserError, nearest


def is_conv1d(module: nn.Module) -> bool:
    """Return whether this is transformers' Conv1D (GPT-2): a linear layer with weight (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return type(module) is Conv1D


def is_quantised(module: nn.Module) -> bool:
    """Return whether the weight is stored in integers or in 8-bit floats."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return not weight.is_floating_point() or weight.element_size() < 2


def target_layers(model: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Return the full names of the layers to wrap, in model order.

    As in PEFT, `wanted` are suffixes of module names, or a regular expression of full names, or
    "all-linear": every linear layer except the output head. UserError for what matches nothing, or
    a module that cannot be wrapped.
    """
    reasons = _unsupported(model)
    every = [
        name for name, module in model.named_modules() if name in reasons and not reasons[name]
    ]
    if wanted == "all-linear":
        if not every:
            raise UserError("lora.target_modules: 'all-linear' matches no layer of this model")
        return every
    choices = sorted({_leaf(name) for name in every})
    chosen: set[str] = set()
    for pattern in [wanted] if isinstance(wanted, str) else wanted:
        hits = [n for n, _ in model.named_modules() if n == pattern or n.endswith(f".{pattern}")]
        if not hits and isinstance(wanted, str):
            hits = _full_matches(model, wanted)
        if not hits:
            raise UserError(
                f"lora.target_modules: '{pattern}' matches no layer of the model "
                f"(it has: {', '.join(choices)}){nearest(pattern, choices)}"
            )
        for name in hits:
            if reason := reasons.get(name, "is not a linear layer"):
                raise UserError(
                    f"lora.target_modules: '{pattern}' {reason} (choose from: {', '.join(choices)})"
                )
        chosen.update(hits)
    return [name for name in every if name in chosen]


def describe_targets(model: nn.Module, targets: Iterable[str]) -> str:
    """Return one line on which layers are adapted, and which kinds with matrices are not.

    `model` has no branches yet. Embeddings are left out.
    """
    adapted = set(targets)
    other: dict[str, str] = {}
    for name, module in model.named_modules():
        matrices = [p for p in module.parameters(recurse=False) if p.dim() > 1]
        if matrices and name not in adapted and not isinstance(module, nn.Embedding):
            kind = type(module).__name__
            experts = any(p.dim() == 3 for p in matrices) and not isinstance(module, nn.Conv1d)
            other[_leaf(name)] = f"{kind}, experts in one block" if experts else kind
    rest = ", ".join(f"{leaf} ({kind})" for leaf, kind in sorted(other.items()))
    counts = Counter(map(_leaf, adapted))
    used = ", ".join(f"{leaf} {count}" for leaf, count in sorted(counts.items()))
    return f"adapting {len(adapted)} layers ({used}); not adapted: {rest or 'none'}"


def _full_matches(model: nn.Module, pattern: str) -> list[str]:
    try:
        return [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    except re.error as error:
        raise UserError(
            f"lora.target_modules: '{pattern}' is neither a layer nor a regular expression "
            f"({error})"
        ) from None


def _leaf(name: str) -> str:
    """Return the last part of a module name that is not a number."""
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), name)


def _unsupported(model: nn.Module) -> dict[str, str]:
    """Return why each linear-like layer cannot be wrapped, '' if it can, by full name."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    classes: dict[type, str] = {}
    found = {}
    for name, module in model.named_modules():
        if not (isinstance(module, nn.Linear) or is_conv1d(module)):
            continue
        if type(module) not in classes:
            classes[type(module)] = _not_linear(module)
        found[name] = "is the output head, which is not adapted" if module is head else ""
        found[name] = found[name] or classes[type(module)]
    return found


@torch.no_grad()
def _not_linear(module: nn.Module) -> str:
    """Return '' if the forward is x W^T + b; routers of experts derive from nn.Linear too."""
    if type(module) is nn.Linear or is_conv1d(module) or is_quantised(module):
        return ""
    reason = f"is a {type(module).__name__}, which does not compute x W^T + b"
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    x = torch.linspace(-1, 1, weight.shape[-1], device=weight.device, dtype=weight.dtype)[None]
    try:
        out = module(x)
        expected = functional.linear(x, weight, module.bias)  # type: ignore[arg-type]
    except Exception:  # a forward of other arguments
        return reason
    if not isinstance(out, torch.Tensor) or out.shape != expected.shape:
        return reason
    same = weight.is_meta or torch.allclose(out, expected, rtol=1e-2, atol=1e-2)
    return "" if same else reason
