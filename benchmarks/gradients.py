"""Difference of losses and gradients between our training step and PEFT's on the same rows.

    python benchmarks/gradients.py [--rows 4] [--tokens 48] [--dtypes fp32,bf16]

PEFT has two active adapters on the plain transformers model and runs row by row; ours packs the
rows. Both have the same random factors, and R is trained. The distance of gradients is
||ours - PEFT's|| / ||PEFT's||, over all factors and for the worst factor. In bf16 both are also
compared with PEFT in fp32, since both round.
"""

import argparse
import gc

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM

from fedsdr.config import DataConfig, ModelConfig
from fedsdr.data.chat_templates import render_for
from fedsdr.data.clients import load_clients
from fedsdr.models.adapters import peft_tensors
from fedsdr.models.base_model import EMBEDDED, load_base
from fedsdr.models.packing import supervised_tokens
from fedsdr.models.two_branch import BranchedModel
from fedsdr.tensors import Tensors
from fedsdr.training.optimizer_step import accumulate_gradients
from fedsdr.types import TokenRow

RANK, ALPHA, TARGETS = 8, 16, ["q_proj", "v_proj"]
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Gradients = dict[str, Tensor]


def real_rows(count: int, length: int) -> list[TokenRow]:
    """Return rows of the embedded clients in turn, the last `length` tokens of each."""
    renderer = render_for(load_base(ModelConfig(name=EMBEDDED)).tokenizer)
    clients = load_clients(DataConfig(clients="embedded:five-domains", test_fraction=0.0))
    encoded = [[renderer.encode(row, 4096) for row in c.raw[:count]] for c in clients]
    rows = [row for turn in zip(*encoded, strict=True) for row in turn][:count]
    return [TokenRow(r.id, r.tokens[-length:], r.supervised[-length:]) for r in rows]


def factors(model: BranchedModel) -> Tensors:
    """Return random non-zero factors of both branches."""
    start = model.initial("R", 1) | model.initial("S", 2)
    draw = torch.Generator().manual_seed(3)
    return {name: v + 0.02 * torch.randn(v.shape, generator=draw) for name, v in start.items()}


def our_step(dtype: str, rows: list[TokenRow]) -> tuple[float, Gradients, Tensors]:
    """Return the loss, the gradients of R, and the factors used."""
    base = load_base(ModelConfig(name=EMBEDDED, device="cpu", dtype=dtype))  # type: ignore[arg-type]
    model = BranchedModel(base.model, rank=RANK, alpha=ALPHA, target_modules=TARGETS)
    start = factors(model)
    model.set(start)
    parameters = model.parameters("R")
    with model.using("R", "S", trained="R"):
        total, count = accumulate_gradients(model.model, parameters.values(), rows, 1024)
        gradients = {n: p.grad.float() for n, p in parameters.items() if p.grad is not None}
    return total / count, peft_tensors(gradients, "R"), start


def peft_step(dtype: str, rows: list[TokenRow], start: Tensors) -> tuple[float, Gradients]:
    """Return the loss and the gradients of PEFT with two active adapters, one row at a time."""
    gguf = load_base(ModelConfig(name=EMBEDDED)).gguf
    assert gguf is not None
    base = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=TORCH_DTYPES[dtype]
    ).requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0)
    model = get_peft_model(base, config, adapter_name="R")
    model.add_adapter("S", config)
    for branch in ("R", "S"):
        own = {name: v for name, v in start.items() if name.startswith(branch)}
        set_peft_model_state_dict(model, peft_tensors(own, branch), adapter_name=branch)  # type: ignore[arg-type]
    model.base_model.set_adapter(["R", "S"])
    for name, p in model.named_parameters():
        p.requires_grad_(".R." in name)
    supervised = sum(supervised_tokens(row) for row in rows)
    total = 0.0
    for row in rows:
        tokens, labels = torch.tensor([row.tokens]), torch.tensor(row.supervised[1:])
        logits = model(tokens).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        loss = losses[labels].sum() / supervised
        loss.backward()
        total += float(loss.detach())
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return total, {n.replace(".R.", "."): g.float() for n, g in gradients.items()}


def distances(ours: Gradients, theirs: Gradients) -> tuple[float, float]:
    """Return ||a - b|| / ||b|| over all factors, and for the worst factor."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"factors differ: {sorted(ours)[:2]}, {sorted(theirs)[:2]}")
    each = {n: ((ours[n] - theirs[n]).norm() ** 2, theirs[n].norm() ** 2) for n in ours}
    apart, whole = (sum(float(pair[i]) for pair in each.values()) for i in (0, 1))
    return (apart / whole) ** 0.5, max(float(a / b) ** 0.5 for a, b in each.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48, help="last tokens of each row")
    parser.add_argument("--dtypes", default="fp32,bf16")
    given = parser.parse_args()
    rows = real_rows(given.rows, given.tokens)
    print(f"{len(rows)} rows, {sum(len(r.tokens) for r in rows)} tokens, {torch.__version__}")
    print("| dtype | comparison | loss | gradients | worst factor |")
    print("|---|---|--:|--:|--:|")
    exact: tuple[float, Gradients] | None = None
    for dtype in given.dtypes.split(","):
        loss, gradients, start = our_step(dtype, rows)
        gc.collect()
        theirs = peft_step(dtype, rows, start)
        compared = [("ours, PEFT", (loss, gradients), theirs)]
        if exact:
            compared += [("ours, PEFT in fp32", (loss, gradients), exact)]
            compared += [("PEFT, PEFT in fp32", theirs, exact)]
        exact = theirs if dtype == "fp32" else exact
        for what, (a, got), (b, want) in compared:
            every, worst = distances(got, want)
            print(f"| {dtype} | {what} | {abs(a - b) / b:.1e} | {every:.1e} | {worst:.1e} |")


if __name__ == "__main__":
    main()
