"""The core of the test suite on a device: `gpu.py`, part "checks".

Losses, gradients and answers come from plain transformers and PEFT on the CPU in fp32, one row at a
time, over the same weights. In bf16 ours may be at most twice as far from these as PEFT in bf16 on
the same device.
"""

import copy
import functools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config

from fedsdr.config import Config
from fedsdr.models import packed_attention
from fedsdr.models.adapters import peft_tensors
from fedsdr.models.checkpointing import checkpoint_layers
from fedsdr.models.fast_path import prepare
from fedsdr.models.fused_ops import FrozenRMSNorm, compiles, label_losses
from fedsdr.models.generation import transformers_generate
from fedsdr.models.packing import row_losses
from fedsdr.models.two_branch import BranchedModel
from fedsdr.training.client_store import ClientStore
from fedsdr.training.client_update import client_training
from fedsdr.training.local_training import ClientRows
from fedsdr.training.methods import METHODS
from fedsdr.training.optimizer_step import accumulate_gradients, run_alone
from fedsdr.types import ClientTask, Decoding, GenerationRequest, LocalSettings, TokenRow, Turn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import SIZES, branched
from tiny import rows as tiny_rows

PREFIX = (5, 6, 7, 8)
TARGETS = ("q_proj", "v_proj", "down_proj")
COMMON = {**SIZES, "head_dim": 8, "initializer_range": 0.2, "pad_token_id": 2, "eos_token_id": 2}
ARCHITECTURES = {  # plain; biases; windows; windows, a cap on the scores and norms of 1 + weight
    "llama": LlamaConfig(**COMMON),
    "qwen2": Qwen2Config(**COMMON),
    "mistral": MistralConfig(**COMMON, sliding_window=6),
    "gemma2": Gemma2Config(**COMMON, sliding_window=6, query_pre_attn_scalar=8),
}
FP32_LIMIT = 1e-4
Found = tuple[Tensor, Tensor]  # losses of the rows, and the gradients of R as one vector


def rows(task: Any) -> Iterator[dict[str, Any]]:
    """Yield a row for each check; one that raises has failed, and the others go on."""
    device = torch.device("cuda" if task.cuda else "cpu")
    groups = [
        *((f"{name}, {dtype}", step_checks, (name, dtype, device))
          for name in ARCHITECTURES for dtype in ("fp32", "bf16")),
        *((f"norm and loss, {dtype}", fused_checks, (dtype, device)) for dtype in ("fp32", "bf16")),
        *((f"generation, {name}", generation_checks, (name, device))
          for name in ("llama", "gemma2")),
        ("checkpointing", checkpointing_checks, (device,)),
        ("local training", training_checks, (device,)),
    ]  # fmt: skip
    for group, check, arguments in groups:
        try:
            for found in check(*arguments):
                yield {"check": f"{group}: {found.what}", "error": found.error,
                       "limit": found.limit, "ok": found.error <= found.limit}  # fmt: skip
        except Exception as error:  # a kernel may raise anything
            reason = f"{type(error).__name__}: {str(error)[:300]}"
            yield {"check": group, "ok": False, "note": reason}


@dataclass(frozen=True)
class Check:
    """An error and the most that it may be; a yes-or-no check has the error 0 or 1."""

    what: str
    error: float
    limit: float = 0.0


def distance(got: Tensor, wanted: Tensor) -> float:
    """Return ||got - wanted|| / ||wanted||; infinite for NaN."""
    got, wanted = got.detach().double().cpu(), wanted.detach().double().cpu()
    return float(torch.nan_to_num((got - wanted).norm() / wanted.norm(), nan=float("inf")))


def model_of(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a tiny random model; its weights are those of bf16 in any dtype."""
    torch.manual_seed(0)
    config = copy.deepcopy(ARCHITECTURES[name])
    # Fused attention leaves out Gemma's cap on the scores.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.bfloat16().to(device, dtype).eval().requires_grad_(False)


def data() -> list[TokenRow]:
    """Return rows of different lengths that begin alike."""
    plain = tiny_rows()
    return [
        TokenRow(r.id, (*PREFIX, *r.tokens), (*(False,) * len(PREFIX), *r.supervised))
        for r in plain
    ]


def ours(model: BranchedModel) -> Found:
    """Return our losses and gradients, rows packed."""
    with model.using("R", "S", trained="R"):
        losses = row_losses(model.model, data()).detach()
        accumulate_gradients(model.model, model.parameters("R").values(), data(), pack_tokens=60)
        grads = {n: p.grad for n, p in model.parameters("R").items() if p.grad is not None}
        named = peft_tensors(grads, "R")
        return losses, torch.cat([named[name].flatten() for name in sorted(named)])


def theirs(name: str, model: BranchedModel, device: torch.device, dtype: torch.dtype) -> Found:
    """Return the same of PEFT with two active adapters, one row at a time."""
    lora = LoraConfig(r=model.rank, lora_alpha=model.alpha, target_modules=list(TARGETS))
    twin: Any = get_peft_model(model_of(name, device, dtype), lora, adapter_name="R")
    twin.add_adapter("S", lora)
    for branch in ("R", "S"):
        set_peft_model_state_dict(twin, peft_tensors(model.get(branch), branch), branch)
    twin.base_model.set_adapter(["R", "S"])
    for key, parameter in twin.named_parameters():
        parameter.requires_grad_(".R." in key)
    supervised = sum(sum(row.supervised[1:]) for row in data())
    losses = []
    for row in data():
        tokens = torch.tensor(row.tokens, device=device)
        logits = twin(tokens[None]).logits[0, :-1].float()
        each = functional.cross_entropy(logits, tokens[1:], reduction="none")
        losses.append(each[torch.tensor(row.supervised[1:], device=device)].sum())
        (losses[-1] / supervised).backward()
    grads = {n.replace(".R.", "."): p.grad for n, p in twin.named_parameters()
             if p.grad is not None}  # fmt: skip
    return torch.stack(losses), torch.cat([grads[key].flatten() for key in sorted(grads)])


def step_checks(name: str, dtype: str, device: torch.device) -> Iterator[Check]:
    """Packed two-branch losses and gradients against PEFT's, with FlashAttention and without."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    plain = model_of(name, device, kind)
    notes = prepare(plain)
    yield Check(f"fast path {notes or ''}", float(bool(notes)))
    model = branched(plain, targets=list(TARGETS))
    exact = exact_of(name, model.rank)
    limits = [FP32_LIMIT, FP32_LIMIT]
    if dtype == "bf16":
        near = theirs(name, model, device, kind)
        limits = [2 * distance(*pair) + 0.01 for pair in zip(near, exact, strict=True)]
    flash = packed_attention.has_flash(torch.empty(1, 4, 8, 8, device=device, dtype=kind))
    if dtype == "bf16" and device.type == "cuda":
        yield Check("FlashAttention is there", float(not flash))
    for use in (True, False) if flash else (False,):
        with patch.object(packed_attention, "has_flash", lambda query, use=use: use):
            found = ours(model)
            with model.using("R", "S"), torch.no_grad():
                alone = torch.cat([row_losses(model.model, [row]) for row in data()])
        way = "FlashAttention" if use else "own attention"
        for what, got, want, limit in zip(("losses", "gradients"), found, exact, limits,
                                          strict=True):  # fmt: skip
            yield Check(f"{what} against PEFT's, {way}", distance(got, want), limit)
        limit = FP32_LIMIT if dtype == "fp32" else 2e-2
        yield Check(f"packed rows against each alone, {way}", distance(found[0], alone), limit)


@functools.cache
def exact_of(name: str, rank: int) -> Found:
    """Return PEFT's losses and gradients on the CPU in fp32; `branched` draws the same factors."""
    cpu = torch.device("cpu")
    model = branched(model_of(name, cpu, torch.float32), rank, list(TARGETS))
    return theirs(name, model, cpu, torch.float32)


def fused_checks(dtype: str, device: torch.device) -> Iterator[Check]:
    """RMSNorm and the loss, compiled on a GPU, against their formulas in fp64."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    limit = 1e-5 if dtype == "fp32" else 1e-2
    draw = torch.Generator().manual_seed(0)
    if device.type == "cuda":
        yield Check("element-wise kernels are compiled", float(not compiles(torch.ones(1).cuda())))
    for tokens in (50, 131):  # two lengths: shapes are dynamic
        x = torch.randn(1, tokens, 96, generator=draw).to(device, kind).requires_grad_()
        weight = torch.rand(96, generator=draw).to(device, kind)
        upstream = torch.randn(1, tokens, 96, generator=draw).to(device, kind)
        out = FrozenRMSNorm(torch.nn.Parameter(weight, requires_grad=False), 1e-6)(x)
        (got,) = torch.autograd.grad(out, x, upstream)
        wide = x.detach().double().requires_grad_()
        exact = functional.rms_norm(wide, (96,), weight.double(), 1e-6)
        (want,) = torch.autograd.grad(exact, wide, upstream.double())
        error = max(distance(out, exact), distance(got, want))
        yield Check(f"RMSNorm of {tokens} tokens", error, limit)
        head = torch.nn.Linear(96, 500, device=device, dtype=kind).requires_grad_(False)
        labels = torch.randint(500, (tokens,), generator=draw).to(device)
        flat = x.detach()[0].requires_grad_()
        losses = label_losses(flat, head, labels)
        (got,) = torch.autograd.grad(losses.sum(), flat)
        wide = flat.detach().double().requires_grad_()
        logits = functional.linear(wide, head.weight.double(), head.bias.double())
        exact = functional.cross_entropy(logits, labels, reduction="none")
        (want,) = torch.autograd.grad(exact.sum(), wide)
        error = max(distance(losses, exact), distance(got, want))
        yield Check(f"loss of {tokens} labels", error, limit)


class Numbers:
    """A tokenizer whose text is the token ids."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


def generation_checks(name: str, device: torch.device) -> Iterator[Check]:
    """Greedy answers of rows that share a forward pass, against transformers' generate."""
    model, plain = (model_of(name, device, torch.float32) for _ in range(2))
    prepare(model)
    prompts = [list(row.tokens) for row in data()]
    requests = [GenerationRequest(str(i), (Turn("user", str(i)),)) for i in range(len(prompts))]
    generate = transformers_generate(
        model, Numbers(), lambda turns: prompts[int(turns[0].content)], (2,), batch_size=4
    )
    decoding = Decoding(temperature=0.0, max_new_tokens=8)
    answers = {answer.id: answer.text for answer in generate(requests, decoding)}
    wrong = 0
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt], device=device)
        out = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
            eos_token_id=2, pad_token_id=2,
        )[0, len(prompt) :].tolist()  # fmt: skip
        wrong += answers[str(i)] != Numbers().decode([t for t in out if t != 2])
    yield Check("answers unlike generate's", float(wrong))


def checkpointing_checks(device: torch.device) -> Iterator[Check]:
    """Gradients with recomputed activations."""
    plain = model_of("llama", device, torch.float32)
    prepare(plain)
    model = branched(plain, targets=list(TARGETS))
    _, whole = ours(model)
    checkpoint_layers(plain)
    yield Check("gradients", distance(ours(model)[1], whole), 1e-6)


def training_checks(device: torch.device) -> Iterator[Check]:
    """A client's round, by each method and with each correction, against that on the CPU."""
    ways = [
        *((name, "none") for name in METHODS),
        ("dual-raw", "fedprox"),
        ("dual-raw", "scaffold"),
    ]
    for method, correction in ways:
        wanted, got = (after_a_round(method, correction, d) for d in (torch.device("cpu"), device))
        yield Check(f"{method}, correction {correction}", distance(got, wanted), 1e-2)


def after_a_round(method: str, correction: Any, device: torch.device) -> Tensor:
    """Return the update that a client sends and the S that it keeps, as one vector."""
    plain = model_of("llama", device, torch.float32)
    prepare(plain)
    model = branched(plain, targets=list(TARGETS))
    settings = LocalSettings(
        method=method, correction=correction, local_epochs=2, batch_size=3, lora_dropout=0.0,
        lr=1e-3, mask_perplexity=1e4,
    )  # fmt: skip
    shared = model.get(*METHODS[method].sent)
    task = ClientTask(1, "client", 0, shared, {}, settings)
    if correction == "scaffold":
        task = replace(task, control={n: torch.full_like(v, 1e-3) for n, v in shared.items()})
    rows = ClientRows(tuple(data()), rewritten=tuple(reversed(data())))
    with tempfile.TemporaryDirectory() as name:
        store = ClientStore(Path(name), Config().lora, base_name="tiny")
        update = run_alone(client_training(task, rows, model, store), model.model)
    kept = model.get(*METHODS[method].private)
    return torch.cat([t.flatten() for of in (update.delta, kept) for _, t in sorted(of.items())])
