"""One optimizer step of PEFT and transformers with two active adapters, for gpu_step.py."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import nn
from torch.nn import functional

from fedsdr.models.adapters import peft_tensors
from fedsdr.models.packing import pack, supervised_tokens
from fedsdr.tensors import Tensors
from fedsdr.types import TokenRow


@dataclass(frozen=True)
class PeftSetting:
    """How PEFT and transformers run; `batches` are packed (positions restart) or padded."""

    tokens: int
    checkpointing: bool
    batches: str = "padded"
    adapters: str = "bf16"  # or fp32 under autocast
    attention: str = "sdpa"
    liger: bool = False

    def __str__(self) -> str:
        parts = [self.attention, self.batches, f"{self.adapters} adapters", f"{self.tokens} tokens"]
        return ", ".join(parts + ["checkpointing"] * self.checkpointing + ["Liger"] * self.liger)


def peft_model(base: Any, start: Tensors, rank: int, alpha: int) -> Any:
    """Return PEFT's model with these factors in two active adapters, of which R is trained."""
    device = next(base.parameters()).device
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, lora, adapter_name="R")
    model.add_adapter("S", lora)
    for branch in ("R", "S"):
        own = {name: v.to(device) for name, v in start.items() if name.startswith(branch)}
        set_peft_model_state_dict(model, peft_tensors(own, branch), adapter_name=branch)
    model.base_model.set_adapter(["R", "S"])
    for name, p in model.named_parameters():
        p.requires_grad_(".R." in name)
    return model.train()  # transformers checkpoints in training mode only; dropout is 0


def peft_step(model: Any, rows: Sequence[TokenRow], setting: PeftSetting) -> float:
    """One optimizer step of PEFT; logits at supervised tokens only, as in ours."""
    base, device = model.base_model.model, next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    autocast = setting.adapters == "fp32" and device.type == "cuda"
    total = sum(map(supervised_tokens, rows))
    optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.0)
    loss_sum = torch.zeros((), device=device)
    for inputs, keep, labels in batches(rows, setting, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            hidden = base.base_model(**inputs, use_cache=False).last_hidden_state
            logits = base.get_output_embeddings()(hidden.flatten(0, 1)[keep])
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        (loss / total).backward()
        loss_sum += loss.detach()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss_sum) / total


def arrange(model: Any, setting: PeftSetting, start: Tensors) -> None:
    """Set attention, checkpointing, Liger's kernels, and the adapters' first values and dtype."""
    base = model.base_model.model
    if base.config._attn_implementation != setting.attention:
        base.set_attn_implementation(setting.attention)
    if setting.checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        base.gradient_checkpointing_disable()
    if setting.liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=base)
    parameters = dict(model.named_parameters())
    weights = next(p for name, p in parameters.items() if name not in start)
    dtype = torch.float32 if setting.adapters == "fp32" else weights.dtype
    for name, value in start.items():
        parameters[name].grad = None
        parameters[name].data = value.to(weights.device, dtype, copy=True)


def batches(
    rows: Sequence[TokenRow], setting: PeftSetting, device: torch.device
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
    """Yield (arguments, places before the labels, labels) of micro-batches of similar lengths."""
    if setting.batches == "packed":
        groups = pack(rows, setting.tokens)
    else:
        groups, longest = [[]], 0
        for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens)):
            longest = longest or len(rows[i].tokens)
            if (len(groups[-1]) + 1) * longest > setting.tokens and groups[-1]:
                groups.append([])
                longest = len(rows[i].tokens)
            groups[-1].append(i)
    for group in groups:
        members = [rows[i] for i in group]
        width = max(len(row.tokens) for row in members)
        starts = [i * width for i in range(len(members))]
        if setting.batches == "packed":
            starts = [sum(len(row.tokens) for row in members[:i]) for i in range(len(members))]
            ids = [[t for row in members for t in row.tokens]]
            inputs = {"position_ids": [[i for row in members for i in range(len(row.tokens))]]}
        else:
            ids = [[*row.tokens, *[0] * (width - len(row.tokens))] for row in members]
            inputs = {"attention_mask": [
                [1] * len(row.tokens) + [0] * (width - len(row.tokens)) for row in members
            ]}  # fmt: skip
        places = [
            (start + t - 1, row.tokens[t])
            for start, row in zip(starts, members, strict=True)
            for t in range(1, len(row.tokens))
            if row.supervised[t]
        ]
        keep, labels = zip(*places, strict=True)
        inputs = {key: torch.tensor(v, device=device) for key, v in inputs.items()}
        yield (
            inputs | {"input_ids": torch.tensor(ids, device=device)},
            torch.tensor(keep, device=device),
            torch.tensor(labels, device=device),
        )
