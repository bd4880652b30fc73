"""Estimate the memory of a training step from the model's configuration, without its weights.

One training step runs on PyTorch's meta device, whose tensors have shapes but no data, while live
bytes are counted. So the estimate follows the code of the step.
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
from fedsdr.models.joint_packs import MOST_AT_ONCE
from fedsdr.models.live_bytes import LiveBytes
from fedsdr.models.packing import row_losses
from fedsdr.models.two_branch import BranchedModel, with_branches
from fedsdr.types import R, S, TokenRow

# Largest automatic pack. Longer packs exceed a CPU's caches and slow down; GPUs need long ones.
MAX_PACK = {"cpu": 1024, "cuda": 16_384}
MIN_PACK = 512
# Fraction of free memory that a step may use. The estimate counts live bytes: on CPUs, malloc's
# heap grew to twice as much (docs/performance.md); on GPUs leave room for fragmentation.
USABLE = {"cpu": 0.5, "cuda": 0.85}
DEFAULT_PACK = 1024  # where the step cannot run on the meta device

# Bytes per weight of a quantised layer. int8: its fp32 scale per row is neglected. NF4 with double
# quantisation: 4 bits, an 8-bit scale per 64 weights, and an fp32 scale per 256 of those.
_QUANTISED = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}


class CannotEstimateError(Exception):
    """The model's step cannot run on the meta device (mixture of experts, padded batches)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of a training step with packs of `pack_tokens` tokens.

    weights      parameters and buffers of the base at their dtypes; in the linear layers of a
                 quantised base, 1 byte (8bit) or 0.516 bytes (4bit) per weight
    adapters     2 branches x 4 bytes x sum over target layers of rank x (in + out)
    optimizer    trained branch: gradient and AdamW's two moments, 3 x 4 bytes per parameter;
                 both once for each client of a pass (engine.clients_at_once)
    activations  layers x the peak's increase per layer
    logits       the rest of the peak: the loss's (labels, vocabulary) blocks, the running layer's
                 temporaries, and one dequantised layer of a quantised base
    """

    pack_tokens: int
    weights: int
    adapters: int
    optimizer: int
    activations: int
    logits: int

    @property
    def step(self) -> int:
        """Bytes that training adds to a loaded model with its branches."""
        return self.optimizer + self.activations + self.logits

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.step


def shape_of(config: Config) -> BranchedModel:
    """Return the configuration's model with its branches on the meta device.

    UserError as in `load_base` and `BranchedModel`.
    """
    model = load_shape(config.model)
    shape = with_branches(model, config.lora)
    if config.train.checkpointing:
        checkpoint_layers(model)
    return shape


def estimate(
    shape: BranchedModel,
    rows: Sequence[TokenRow],
    *,
    dropout: float = 0.0,
    quantize: Literal["none", "8bit", "4bit"] = "none",
    clients: int = 1,
) -> MemoryEstimate:
    """Return the peak bytes of a step with both branches whose largest pack is `rows`.

    `shape` is on the meta device. The step runs with two and with three decoder layers, and the
    difference is extrapolated to the other layers. Raises CannotEstimateError.
    """
    layers = len(decoder_layers(shape.model))
    few = max(2, min(layers, 3))
    try:
        peak = _peak(shape, rows, few, dropout)
        a_layer = peak - _peak(shape, rows, few - 1, dropout) if layers >= 2 else 0
    except Exception as error:  # model code may do anything with tensors without data
        raise CannotEstimateError(f"{type(error).__name__}: {error}") from error
    weights, dequantised = _weights(shape, quantize)
    branch = clients * sum(p.numel() for p in shape.parameters(R).values())
    return MemoryEstimate(
        pack_tokens=sum(len(row.tokens) for row in rows),
        weights=weights,
        adapters=2 * 4 * branch,
        optimizer=3 * 4 * branch,
        activations=layers * a_layer,
        logits=peak - min(layers, few) * a_layer + dequantised,
    )


def full_pack(pack_tokens: int, max_length: int) -> list[TokenRow]:
    """Return the most expensive pack: rows of `max_length` with every token supervised."""
    size = max(pack_tokens, max_length)  # a longer row is a pack of its own
    lengths = [max_length] * (size // max_length)
    if size % max_length:
        lengths.append(size % max_length)
    # The first tokens differ, so that the rows share no prefix.
    return [TokenRow(str(i), (i, *[0] * (n - 1)), (True,) * n) for i, n in enumerate(lengths)]


def clients_in_a_step(config: Config, clients: int = 0) -> int:
    """Return how many clients' branches a step holds at most; `clients` of the run, 0: unknown."""
    at_once = config.engine.clients_at_once or MOST_AT_ONCE
    return min(at_once, clients or at_once)


def choose_pack(
    config: Config, clients: int = 0, *, loaded: bool = False
) -> tuple[int, MemoryEstimate | None]:
    """Return `train.pack_tokens`, or the automatic choice if it is 0, and the estimate if any.

    The automatic choice is the largest power of two, from 512 to 1,024 on a CPU or 16,384 on a
    GPU, whose step fits into free memory, together with the model unless that is `loaded` with one
    client's branches.
    `clients` is the number of the run's clients, 0: unknown. UserError with the possible fixes if
    none fits.
    """
    device = choose_device(config.model.device)
    given, most = config.train.pack_tokens, MAX_PACK.get(device.type, DEFAULT_PACK)
    usable = USABLE.get(device.type, 0.5)
    shape = shape_of(config)

    at_once = clients_in_a_step(config, clients)

    def at(pack_tokens: int) -> MemoryEstimate:
        return estimate(
            shape,
            full_pack(pack_tokens, config.data.max_length),
            dropout=config.lora.dropout,
            quantize=config.model.quantize,
            clients=at_once,
        )

    def needed(found: MemoryEstimate) -> int:
        held = found.weights + found.adapters // at_once if loaded else 0
        return found.total - held

    try:
        found = at(given or most)
        free = None if given else free_memory(device)
        while free is not None and needed(found) > usable * free:
            most //= 2
            if most < MIN_PACK:
                raise UserError(_too_large(config, found, free))
            found = at(most)
    except CannotEstimateError:
        return given or min(most, DEFAULT_PACK), None
    return given or most, found


def _too_large(config: Config, least: MemoryEstimate, free: int) -> str:
    fixes = []
    if not config.train.checkpointing:
        fixes.append("train.checkpointing = true")
    if config.model.quantize != "4bit":
        fixes.append("model.quantize = '4bit' (CUDA)")
    if config.engine.clients_at_once != 1:
        fixes.append("engine.clients_at_once = 1")
    fixes += ["a smaller data.max_length", "train.pack_tokens = 512 to try anyway"]
    return (
        f"model.name: a training step needs about {least.total / 2**30:.1f} GiB, but only "
        f"{free / 2**30:.1f} GiB are free; set {', or '.join(fixes)}"
    )


def free_memory(device: torch.device, cgroup: str = "/sys/fs/cgroup") -> int | None:
    """Return the free bytes of a device, or None if the system does not report them.

    `cgroup` is the folder of a container's limit (cgroup v2).
    """
    if device.type == "cuda":
        # PyTorch's caching allocator reuses what it has reserved.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = None
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _text(f"{cgroup}/memory.max").strip(), _text(f"{cgroup}/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        stat = dict(line.split() for line in _text(f"{cgroup}/memory.stat").splitlines())
        # Counted as used, but the kernel drops it when memory is needed.
        cache = sum(int(stat.get(name, 0)) for name in ("inactive_file", "slab_reclaimable"))
        room = max(0, int(limit) - int(used) + cache)
        free = room if free is None else min(free, room)
    return free


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _weights(shape: BranchedModel, quantize: str) -> tuple[int, int]:
    """Return the bytes of the base, and of its largest quantised layer when dequantised."""
    size: dict[int, float] = {}  # by id: tied weights count once
    dequantised = 0
    branches = {id(p) for b in (R, S) for p in shape.parameters(b).values()}
    for tensor in (*shape.model.parameters(), *shape.model.buffers()):
        if id(tensor) not in branches:
            size[id(tensor)] = tensor.numel() * tensor.element_size()
    if quantize != "none":
        head = shape.model.get_output_embeddings()  # type: ignore[operator]
        for module in shape.model.modules():
            if isinstance(module, nn.Linear) and module is not head:
                dequantised = max(dequantised, int(size[id(module.weight)]))
                size[id(module.weight)] = module.weight.numel() * _QUANTISED[quantize]
    return int(sum(size.values())), dequantised


def _peak(shape: BranchedModel, rows: Sequence[TokenRow], layers: int, dropout: float) -> int:
    """Return the peak of live bytes that forward and backward add."""
    with _first_layers(shape.model, layers), shape.using(R, S, trained=R, dropout=dropout):
        for parameter in shape.parameters(R).values():
            parameter.grad = torch.zeros_like(parameter)  # gradients of earlier packs
        with LiveBytes() as live:
            row_losses(shape.model, rows).sum().backward()
    return live.peak


@contextmanager
def _first_layers(model: nn.Module, count: int) -> Iterator[None]:
    """Within the context, the model has only its first `count` decoder layers."""
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
