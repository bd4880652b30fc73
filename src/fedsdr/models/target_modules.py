"""Choose the layers that get branches, and say which ones do and do not."""

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

    `wanted` are suffixes of module names, as in PEFT, or "all-linear": every linear layer except
    the output head. UserError for a suffix that matches nothing, or a module that cannot be
    wrapped.
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
            other[_leaf(name)] = type(module).__name__
    rest = ", ".join(f"{leaf} ({kind})" for leaf, kind in sorted(other.items()))
    counts = Counter(map(_leaf, adapted))
    used = ", ".join(f"{leaf} {count}" for leaf, count in sorted(counts.items()))
    return f"adapting {len(adapted)} layers ({used}); not adapted: {rest or 'none'}"


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
