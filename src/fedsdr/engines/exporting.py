"""Write what a run made in the forms that other programs load."""

from pathlib import Path

import torch

from fedsdr.engines.experiment import open_run
from fedsdr.errors import UserError, nearest
from fedsdr.files import write_folder
from fedsdr.models.adapters import peft_config, peft_tensors, write_adapter_files
from fedsdr.tensors import Tensors
from fedsdr.types import Branch, R


def export_model(run: Path, to: Path, *, client_id: str = "", merge: bool = False) -> str:
    """Write the global model, or a client's, into the folder `to`; return what was written.

    A model of two branches becomes one PEFT adapter of twice the rank: A = [A_R; A_S],
    B = [B_R | B_S] and twice the alpha, so that alpha / r is the same and BA = B_R A_R + B_S A_S.
    With `merge` the base weights take the branches in (in fp32, then rounded to the base's dtype).
    """
    if to.exists():
        raise UserError(f"{to}: exists already; choose another --out")
    site, state = open_run(run)
    method = site.method
    branches: tuple[Branch, ...] = method.client_model if client_id else method.global_model
    if method.mixed and client_id:
        raise UserError(
            f"{run}: {method.name} mixes its branches anew for each instance, which no adapter "
            "can hold; export the global model, or take the client's S from clients/"
        )
    values = dict(state.shared)
    if client_id:
        if client_id not in state.accepted:
            known = ", ".join(sorted(state.accepted))
            hint = nearest(client_id, state.accepted)
            raise UserError(f"--client: no client '{client_id}' in {run} (it has: {known}){hint}")
        values |= site.store(client_id).load(state.accepted[client_id])[0]
    if not branches:
        raise UserError(
            f"{run}: {method.name} makes no global model; export a client with --client"
        )
    if merge:
        site.model.set(values)
        merged = site.model.merge(*branches)
        merged.set_attn_implementation("sdpa")  # type: ignore[operator]

        def write(folder: Path) -> None:
            merged.save_pretrained(folder)  # type: ignore[operator]
            site.base.tokenizer.save_pretrained(folder)

        write_folder(to, write)
        return f"merged model in {to}: AutoModelForCausalLM.from_pretrained('{to}')"
    joined = join_branches(values, branches)
    config = peft_config(
        joined, R, alpha=site.config.lora.alpha * len(branches), base_name=site.base.name
    )
    write_folder(to, lambda folder: write_adapter_files(folder, peft_tensors(joined, R), config))
    return f"adapter in {to}: PeftModel.from_pretrained(base, '{to}')"


def join_branches(values: Tensors, branches: tuple[Branch, ...]) -> Tensors:
    """Return one branch, named R, whose product is the sum of the products of `branches`."""
    names = [name[2:] for name in values if name.startswith(branches[0])]
    return {
        f"R/{name}": torch.cat(
            [values[f"{b}/{name}"] for b in branches], dim=0 if name.endswith("lora_A") else 1
        ).contiguous()
        for name in names
    }
