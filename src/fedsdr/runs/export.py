"""Export the models of a run: a PEFT adapter or merged weights, tokenizer and model card."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsdr.errors import UserError, nearest
from fedsdr.files import write_folder
from fedsdr.models.adapters import adapter_parts, join_branches, write_adapter_files
from fedsdr.models.base_model import EMBEDDED, stored_dtype
from fedsdr.models.gguf_adapter import check_architecture, write_gguf_adapter
from fedsdr.runs.client_runtime import ClientRuntime, open_runtime
from fedsdr.runs.model_card import load_lines, model_card
from fedsdr.runs.run_folder import read_run
from fedsdr.tensors import Tensors
from fedsdr.types import Branch, R, ServerState

HUB_IDS = {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}
GGUF = "adapter.gguf"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


def export_model(
    run: Path, to: Path, *, client_id: str = "", merge: bool = False, gguf: bool = False
) -> str:
    """Write the global or a client's model into the folder `to`; return lines that say how to load
    and serve it.

    Two branches become one PEFT adapter (`adapters.join_branches`), whose base is named by its hub
    id. With `merge` the branches are added to the base weights in fp32, then rounded to the dtype
    in which the base is stored. With `gguf` the adapter is written for llama.cpp as well.
    """
    if to.exists():
        raise UserError(f"{to}: exists already; choose another --out")
    if merge and gguf:
        raise UserError(
            "--gguf: writes an adapter; convert merged weights with llama.cpp's "
            "convert_hf_to_gguf.py, or leave --merge out"
        )
    config, state = read_run(run)
    if merge:
        model = dataclasses.replace(config.model, dtype=stored_dtype(config.model))
        config = dataclasses.replace(config, model=model)
    runtime = open_runtime(config, run)
    branches, values = _parts_of(runtime, run, state, client_id)
    base = HUB_IDS.get(runtime.config.model.name, runtime.config.model.name)
    card = model_card(run, runtime.config, state, base=base, client_id=client_id, merged=merge)
    if merge:
        write, lines = _merged(runtime, to, branches, values)
    else:
        write, lines = _adapter(runtime, to, branches, values, base, gguf)

    def write_all(folder: Path) -> None:
        write(folder)
        runtime.base.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")

    write_folder(to, write_all)
    return "\n".join(lines)


def _parts_of(
    runtime: ClientRuntime, run: Path, state: ServerState, client_id: str
) -> tuple[tuple[Branch, ...], Tensors]:
    """Return the branches of the model and their factors. UserError for a model that is not."""
    method = runtime.method
    branches: tuple[Branch, ...] = method.client_model if client_id else method.global_model
    if method.mixed and client_id:
        raise UserError(
            f"{run}: {method.name} weights its branches per instance, which an adapter cannot "
            "hold; export the global model, or take the client's S from clients/"
        )
    values = dict(state.shared)
    if client_id:
        if client_id not in state.accepted:
            known = ", ".join(sorted(state.accepted))
            hint = nearest(client_id, state.accepted)
            raise UserError(f"--client: no client '{client_id}' in {run} (it has: {known}){hint}")
        values |= runtime.private_of(client_id, state)
    if not branches:
        raise UserError(f"{run}: {method.name} has no global model; export a client with --client")
    return branches, values


Written = tuple[Callable[[Path], None], list[str]]  # what writes the files, and lines for the user


def _merged(
    runtime: ClientRuntime, to: Path, branches: tuple[Branch, ...], values: Tensors
) -> Written:
    runtime.model.set(values)
    merged: Any = runtime.model.merge(*branches)
    lines = [
        f"merged model ({runtime.config.model.dtype}) in {to}:",
        *_indented(load_lines(True, str(to))),
        f"  vllm serve {to}",
    ]
    return merged.save_pretrained, lines


def _adapter(
    runtime: ClientRuntime,
    to: Path,
    branches: tuple[Branch, ...],
    values: Tensors,
    base: str,
    gguf: bool,
) -> Written:
    lora, model = runtime.config.lora, runtime.model
    tensors, config = adapter_parts(values, branches, lora=lora, base_name=base)
    if gguf:
        check_architecture(model.model.config)

    def write(folder: Path) -> None:
        write_adapter_files(folder, tensors, config)
        if gguf:
            joined = join_branches(values, branches)
            factors = {name.removeprefix(f"{R}/"): value for name, value in joined.items()}
            write_gguf_adapter(folder / GGUF, factors, model.scales, model.model.config)

    rank = max(value.shape[0] for name, value in tensors.items() if "lora_A" in name)
    fits = next((r for r in VLLM_RANKS if r >= rank), rank)
    serve = f"vllm serve {base} --enable-lora --max-lora-rank {fits} --lora-modules {to.name}={to}"
    lines = [f"adapter in {to}:", *_indented(load_lines(False, str(to))), f"  {serve}"]
    if gguf:
        file = runtime.base.gguf or "BASE.gguf"
        lines.append(f"  llama-server -m {file} --lora {to / GGUF}")
    return write, lines


def _indented(lines: str) -> list[str]:
    return [f"  {line}" for line in lines.splitlines()]
