"""How much memory a training step takes, from the shape of the model alone.

Nothing is loaded and nothing computed: the model stands on PyTorch's meta device, whose tensors
have sizes and no values. One training step runs there while the bytes that are alive are counted,
so the estimate follows whatever the step really keeps.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fedsdr.config import Config
from fedsdr.errors import UserError
from fedsdr.models.base_model import choose_device, load_shape
from fedsdr.models.checkpointing import checkpoint_layers, decoder_layers
from fedsdr.models.live_bytes import LiveBytes
from fedsdr.models.packing import row_losses
from fedsdr.models.two_branch import BranchedModel
from fedsdr.types import R, S, TokenRow

# Packs far over this fall out of a CPU's cache and slow down; a GPU wants them long.
MOST = {"cpu": 1024, "cuda": 16_384}
LEAST = 512
# Share of the free memory that a step may take. The estimate is of the bytes alive: on a GPU it is
# within 15 %; the heap of a CPU's malloc grew to twice the bytes alive (docs/performance.md).
USABLE = {"cpu": 0.5, "cuda": 0.85}
UNKNOWN = 1024  # pack size where the step cannot be followed without values

# Bytes a weight of a quantised layer. int8 has one fp32 scale a row, which is left out. NF4 with
# double quantisation: 4 bits, an 8-bit scale every 64 weights, an fp32 one every 256 of those.
_QUANTISED = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}


class CannotEstimateError(Exception):
    """The step of this model needs values (a mixture of experts, padded batches)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training step with packs of `pack_tokens` tokens.

    weights      all parameters and buffers of the base, each at its own dtype; with a quantised
                 base 1 byte (8bit) or 0.516 bytes (4bit) a weight of its linear layers but the head
    adapters     2 branches x 4 bytes x sum over targets of rank (in + out)
    optimizer    of the trained branch: gradient, and AdamW's two moments; 3 x 4 bytes a number
    activations  layers x what one more layer adds to the peak
    logits       the rest of the peak: the (labels, vocabulary) blocks of the loss, the layer that
                 is running at that moment, and with a quantised base one layer's weights, restored
    """

    pack_tokens: int
    weights: int
    adapters: int
    optimizer: int
    activations: int
    logits: int

    @property
    def step(self) -> int:
        """What training adds to a loaded model with its branches."""
        return self.optimizer + self.activations + self.logits

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.step


def shape_of(config: Config) -> BranchedModel:
    """Return the model of a configuration with its branches, without values.

    UserError as in `load_base` and `BranchedModel`.
    """
    model, lora = load_shape(config.model), config.lora
    shape = BranchedModel(
        model, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules
    )
    if config.train.checkpointing:
        checkpoint_layers(model)
    return shape


def estimate(
    shape: BranchedModel,
    rows: Sequence[TokenRow],
    *,
    dropout: float = 0.0,
    quantize: Literal["none", "8bit", "4bit"] = "none",
) -> MemoryEstimate:
    """Return the bytes of a training step whose largest pack is `rows`; both branches in it.

    `shape` is on the meta device. Layers are alike, so the step runs with two and with three of
    them, and the others add what the third did. Raises CannotEstimateError.
    """
    layers = len(decoder_layers(shape.model))
    few = max(2, min(layers, 3))
    try:
        peak = _peak(shape, rows, few, dropout)
        a_layer = peak - _peak(shape, rows, few - 1, dropout) if layers >= 2 else 0
    except Exception as error:  # whatever the code of some model does with tensors without values
        raise CannotEstimateError(f"{type(error).__name__}: {error}") from error
    weights, restored = _weights(shape, quantize)
    branch = sum(p.numel() for p in shape.parameters(R).values())
    return MemoryEstimate(
        pack_tokens=sum(len(row.tokens) for row in rows),
        weights=weights,
        adapters=2 * 4 * branch,
        optimizer=3 * 4 * branch,
        activations=layers * a_layer,
        logits=peak - min(layers, few) * a_layer + restored,
    )


def full_pack(pack_tokens: int, max_length: int) -> list[TokenRow]:
    """Return the costliest pack: the longest rows that there may be, every token supervised."""
    size = max(pack_tokens, max_length)  # a longer row gets a pack of its own
    lengths = [max_length] * (size // max_length)
    if size % max_length:
        lengths.append(size % max_length)
    # Each begins with a token of its own, so that they have nothing in common.
    return [TokenRow(str(i), (i, *[0] * (n - 1)), (True,) * n) for i, n in enumerate(lengths)]


def choose_pack(config: Config, *, loaded: bool = False) -> tuple[int, MemoryEstimate | None]:
    """Return `train.pack_tokens`, chosen where it is 0, and the estimate at this size, if any.

    Automatic is the largest power of two, from 512 to 1,024 on a CPU or 16,384 on a GPU, that fits
    into the free memory: model, branches and step, or the step alone beside a model that is
    `loaded`. UserError, with what would mend it, when none does.
    """
    device = choose_device(config.model.device)
    given, most = config.train.pack_tokens, MOST.get(device.type, UNKNOWN)
    usable = USABLE.get(device.type, 0.5)
    shape = shape_of(config)

    def at(pack_tokens: int) -> MemoryEstimate:
        return estimate(
            shape,
            full_pack(pack_tokens, config.data.max_length),
            dropout=config.lora.dropout,
            quantize=config.model.quantize,
        )

    try:
        found = at(given or most)
        free = free_memory(device)
        while (
            not given
            and free is not None
            and (found.step if loaded else found.total) > usable * free
        ):
            most //= 2
            if most < LEAST:
                raise UserError(_too_large(config, found, free))
            found = at(most)
    except CannotEstimateError:
        return given or min(most, UNKNOWN), None
    return given or most, found


def _too_large(config: Config, least: MemoryEstimate, free: int) -> str:
    mends = []
    if not config.train.checkpointing:
        mends.append("train.checkpointing = true")
    if config.model.quantize != "4bit":
        mends.append("model.quantize = '4bit' (CUDA)")
    mends += ["a smaller data.max_length", "train.pack_tokens = 512 to try all the same"]
    return (
        f"model.name: {free / 2**30:.1f} GiB are free, too few for a training step, which takes "
        f"some {least.total / 2**30:.1f} GiB; set {', or '.join(mends)}"
    )


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be had there, None where the system does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # what PyTorch holds for its next tensors
    free = None
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    if limit.strip().isdigit() and used.strip().isdigit():  # a container's share of the machine
        room = max(0, int(limit) - int(used))
        free = room if free is None else min(free, room)
    return free


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _weights(shape: BranchedModel, quantize: str) -> tuple[int, int]:
    """Return the bytes of the base, and those of its largest quantised layer when restored."""
    size: dict[int, float] = {}  # by identity: tied weights count once
    restored = 0
    branches = {id(p) for b in (R, S) for p in shape.parameters(b).values()}
    for tensor in (*shape.model.parameters(), *shape.model.buffers()):
        if id(tensor) not in branches:
            size[id(tensor)] = tensor.numel() * tensor.element_size()
    if quantize != "none":
        head = shape.model.get_output_embeddings()  # type: ignore[operator]
        for module in shape.model.modules():
            if isinstance(module, nn.Linear) and module is not head:
                restored = max(restored, int(size[id(module.weight)]))
                size[id(module.weight)] = module.weight.numel() * _QUANTISED[quantize]
    return int(sum(size.values())), restored


def _peak(shape: BranchedModel, rows: Sequence[TokenRow], layers: int, dropout: float) -> int:
    """Return the most bytes alive during forward and backward over what was there before."""
    with _first_layers(shape.model, layers), shape.using(R, S, trained=R, dropout=dropout):
        for parameter in shape.parameters(R).values():
            parameter.grad = torch.zeros_like(parameter)  # of the packs before
        with torch.no_grad():
            row_losses(shape.model, rows)  # what is cached once, such as masks, is made here
        with LiveBytes() as live:
            row_losses(shape.model, rows).sum().backward()
    return live.peak


@contextmanager
def _first_layers(model: nn.Module, count: int) -> Iterator[None]:
    """Inside, the model has no more than its first `count` decoder layers."""
    layers = set(decoder_layers(model))
    lists = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and layers & set(child)
    ]
    for owner, name, child in lists:
        setattr(owner, name, child[:count])
    try:
        yield
    finally:
        for owner, name, child in lists:
            setattr(owner, name, child)
