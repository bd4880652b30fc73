"""Switch a model to the fast path, as far as that gives the results of the plain model.

The fast path is packed attention, fused norms, a loss that applies the output head, and generation
with a shared cache. Whether it is right depends on the architecture, so it is compared on the
loaded model itself with plain forward passes of single rows. Where it differs, the next slower way
is taken, and a note says which and why.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsdr.errors import UserError
from fedsdr.models.forward_plan import ForwardPlan, GenerationMode, Losses, plan_of, rope_of
from fedsdr.models.fused_ops import fuse_norms
from fedsdr.models.generation import next_logits
from fedsdr.models.packing import device_of, row_losses
from fedsdr.models.row_attention import ATTENTION, packing_obstacle, register
from fedsdr.models.row_cache import Piece, RowCache, forward_pieces
from fedsdr.types import TokenRow

PREFIX = 2  # tokens that the test rows share
LENGTHS = (6, 4)  # of the test rows
WINDOW = 3  # attention windows are set to this, so that the test rows are longer
NEW_TOKENS = 1  # of each test row, fed alone to test the cache
# Largest relative error of (losses and logits, gradients). In 16 bits two plain forward passes of
# different shapes differ by up to 1 % and 10 %; wrong masks differ by more than 5 % and 100 %.
TOLERANCE, TOLERANCE_16_BITS = (1e-4, 1e-3), (3e-2, 0.3)

_WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size")
_DESCRIPTION = {"padded": "rows are padded", "single": "rows run one at a time"}


@dataclass(frozen=True)
class _Result:
    """Losses per row, the gradient of the embedded tokens in packed order, and logits per row."""

    losses: Tensor
    gradient: Tensor
    logits: tuple[Tensor, ...]


def prepare(model: nn.Module) -> tuple[str, ...]:
    """Choose the fastest correct `ForwardPlan` of a loaded, frozen model; return notes for the log.

    UserError if the plain model fails or gives numbers that are not finite. On the meta device
    nothing can be compared; the architecture alone decides.
    """
    obstacle = packing_obstacle(model)
    rope, rope_window = rope_of(model)
    attention = getattr(model.config, "_attn_implementation", None)
    plan = ForwardPlan(
        "single", "no_cache", rope=rope, rope_window=rope_window, attention=attention
    )
    if device_of(model).type == "meta":
        plain_head = not obstacle and type(_head(model)) is nn.Linear
        _use(model, replace(plan, losses="padded" if obstacle else "packed", plain_head=plain_head))
        fuse_norms(model)
        return ()
    with _short_windows(model):
        reference, plan = _reference(model, plan)
        originals = fuse_norms(model)
        fused = {name: model.get_submodule(name) for name in originals}
        failures: dict[tuple[Losses, bool], str] = {}

        def attempt(losses: Losses, fuse: bool) -> bool:
            try:
                for name, norm in (fused if fuse else originals).items():
                    model.set_submodule(name, norm)
                _use(model, replace(plan, losses=losses))
                failures[losses, fuse] = _difference(model, _measure(model), reference)
            except Exception as error:  # model code may raise anything
                failures[losses, fuse] = _one_line(error)
            return not failures[losses, fuse]

        kinds: tuple[Losses, ...] = ("padded",) if obstacle else ("packed", "padded")
        ways = [(losses, fuse) for losses in kinds for fuse in (True, False) if fuse <= bool(fused)]
        chosen = next((way for way in ways if attempt(*way)), None)
        if chosen is None and not attempt("single", bool(fused)):
            attempt("single", False)
        generation_notes = _choose_cache(model, reference)
    return *_notes(obstacle, failures), *generation_notes


def _use(model: Any, plan: ForwardPlan) -> None:
    """Set the model's plan and the attention function that it needs."""
    if plan.losses == "packed":
        register()
    wanted = ATTENTION if plan.losses == "packed" else plan.attention
    if wanted and model.config._attn_implementation != wanted:
        model.set_attn_implementation(wanted)
    model.forward_plan = plan


def _notes(obstacle: str, failures: dict[tuple[Losses, bool], str]) -> list[str]:
    """Say what is off and why; the last attempt succeeded."""
    losses, _ = list(failures)[-1]
    notes = []
    if losses != "packed":
        reason = obstacle or failures["packed", False]
        note = f"model: no packed attention, {_DESCRIPTION[losses]} ({reason})"
        if losses == "single":
            note += f", no padding ({failures['padded', False]})"
        notes.append(note)
    if why := failures.get((losses, True)):
        notes.append(f"model: no fused norms ({why})")
    return notes


def _head(model: Any) -> nn.Module | None:
    head: nn.Module | None = model.get_output_embeddings()
    return head


def _rows(model: Any) -> list[TokenRow]:
    """Return two test rows with a common prefix, every token supervised."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    first = [(5 + 7 * i) % vocabulary for i in range(sum(LENGTHS))]
    second = first[:PREFIX] + first[LENGTHS[0] : LENGTHS[0] + LENGTHS[1] - PREFIX]
    rows = (first[: LENGTHS[0]], second)
    return [TokenRow(str(i), tuple(r), (True,) * len(r)) for i, r in enumerate(rows)]


def _reference(model: Any, plan: ForwardPlan) -> tuple[_Result, ForwardPlan]:
    """Return the plain model's result, row by row, and the plan with `plain_head` filled in."""
    model.forward_plan = plan
    heads: list[bool] = []
    hidden: dict[str, Any] = {}

    def keep_hidden(module: nn.Module, args: Any, out: Any) -> None:
        hidden["last"] = getattr(out, "last_hidden_state", None)

    def keep_head(module: nn.Module, args: Any, out: Tensor) -> None:
        hidden["in"], hidden["logits"] = args[0] if args else None, out.detach().clone()

    def compare(module: nn.Module, args: Any, out: Any) -> None:
        pairs = ((hidden.get("last"), hidden.get("in")), (hidden.get("logits"), out.logits))
        heads.append(all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs))

    head = _head(model)
    try:
        with ExitStack() as stack:
            if type(head) is nn.Linear and model.base_model is not model:
                stack.callback(model.base_model.register_forward_hook(keep_hidden).remove)
                stack.callback(head.register_forward_hook(keep_head).remove)
                stack.callback(model.register_forward_hook(compare).remove)
            result = _measure(model)
    except Exception as error:  # model code may raise anything
        raise UserError(
            f"the model fails on a short row ({_one_line(error)}); "
            "check its files and the packages that it needs"
        ) from error
    if not (result.losses.isfinite().all() and result.gradient.isfinite().all()):
        raise UserError(
            "the model's loss is not finite on a short row; its weights are damaged, "
            "or too large for model.dtype"
        )
    first, second = (row[:PREFIX] for row in result.logits)
    if not float((first - second).norm() / first.norm()) <= _limits(model)[0]:
        raise UserError("not a causal language model, since its predictions depend on later tokens")
    return result, replace(plan, plain_head=bool(heads) and all(heads))


@torch.enable_grad()
def _measure(model: Any) -> _Result:
    """Return the result of the test rows under the model's plan."""
    rows = _rows(model)
    leaves: list[Tensor] = []
    logits: list[Tensor] = []

    def replace_by_leaf(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        leaves.append(out.detach().requires_grad_())
        return leaves[-1].clone()  # some models scale it in place

    def keep_logits(module: nn.Module, args: Any, out: Any) -> None:
        logits.append(out.logits.detach()[0].float())

    with ExitStack() as stack:
        embedding = model.get_input_embeddings()
        stack.callback(embedding.register_forward_hook(replace_by_leaf).remove)
        stack.callback(model.register_forward_hook(keep_logits).remove)
        losses = row_losses(model, rows)
        batches = torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)
    grads = [row for batch in batches for row in batch]
    if len(grads) > 1:  # one per row: join as in a pack
        own = [g[PREFIX : len(row.tokens)] for g, row in zip(grads, rows, strict=True)]
        grads = [torch.cat([sum(g[:PREFIX] for g in grads), *own])]
    return _Result(losses.detach(), grads[0].detach().float(), tuple(logits))


def _difference(model: nn.Module, result: _Result, reference: _Result) -> str:
    """Return how a result differs from the reference, or '' if only by rounding."""
    loss_limit, gradient_limit = _limits(model)
    loss = float(((result.losses - reference.losses) / (1 + reference.losses.abs())).abs().max())
    if not loss <= loss_limit:
        return f"losses would differ by {loss:.2g}, relative"
    scale = reference.gradient.norm().clamp(min=1e-12)
    gradient = float((result.gradient - reference.gradient).norm() / scale)
    if not gradient <= gradient_limit:
        return f"gradients would differ by {gradient:.2g}, relative"
    return ""


def _limits(model: nn.Module) -> tuple[float, float]:
    dtypes = {p.dtype for p in model.parameters()}
    return TOLERANCE if dtypes == {torch.float32} else TOLERANCE_16_BITS


def _choose_cache(model: Any, reference: _Result) -> list[str]:
    """Set the plan's `generation`, tested on the last tokens of the rows; return notes."""
    plan = plan_of(model)
    cached: GenerationMode = "shared_cache" if plan.losses == "packed" else "own_cache"
    model.forward_plan = replace(plan, generation=cached)
    try:
        wrong = _cache_difference(model, reference)
    except Exception as error:  # model code may raise anything
        wrong = _one_line(error)
    if not wrong:
        return []
    model.forward_plan = replace(plan, generation="no_cache")
    return [f"model: no cache, generation recomputes the whole row for each token ({wrong})"]


@torch.inference_mode()
def _cache_difference(model: Any, reference: _Result) -> str:
    """Return how logits of tokens that are fed one at a time differ, or '' if only by rounding."""
    rows = [list(row.tokens) for row in _rows(model)]
    shared = RowCache(len(rows), max(LENGTHS))
    own: Any = None
    for left in range(NEW_TOKENS, -1, -1):
        if plan_of(model).generation == "shared_cache":
            pieces = []
            for slot, row in enumerate(rows):
                end = len(row) - left
                start = 0 if left == NEW_TOKENS else end - 1
                pieces.append(Piece(slot, start, row[start:end]))
            logits = forward_pieces(model, shared, pieces)
        else:
            logits, own = next_logits(model, rows[0][: len(rows[0]) - left], own)
        expected = torch.stack([r[-1 - left] for r in reference.logits[: len(logits)]])
        error = float((logits - expected).norm() / expected.norm())
        if not error <= _limits(model)[0]:
            return f"logits would differ by {error:.2g}, relative"
    return ""


@contextmanager
def _short_windows(model: nn.Module) -> Iterator[None]:
    """Set all attention windows to WINDOW within the context, in the configuration and layers."""
    changed = []
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            for name in _WINDOWS:
                size = getattr(owner, name, None)
                if isinstance(size, int) and size > WINDOW:
                    changed.append((owner, name, size))
                    setattr(owner, name, WINDOW)
    try:
        yield
    finally:
        for owner, name, size in changed:
            setattr(owner, name, size)


def _one_line(error: Exception) -> str:
    """Return the type of an error and the first line of its text, shortened."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
