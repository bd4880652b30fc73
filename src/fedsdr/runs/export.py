"""Export the models of a run as PEFT adapters or merged weights."""

import dataclasses
from pathlib import Path

from fedsdr.errors import UserError, nearest
from fedsdr.files import write_folder
from fedsdr.models.adapters import save_adapter
from fedsdr.models.base_model import stored_dtype
from fedsdr.runs.client_runtime import open_runtime
from fedsdr.runs.run_folder import read_run
from fedsdr.types import Branch


def export_model(run: Path, to: Path, *, client_id: str = "", merge: bool = False) -> str:
    """Write the global or a client's model into the folder `to`; return a line that says how to
    load it.

    Two branches become one PEFT adapter (`adapters.join_branches`). With `merge` the branches are
    added to the base weights in fp32, then rounded to the dtype in which the base is stored.
    """
    if to.exists():
        raise UserError(f"{to}: exists already; choose another --out")
    config, state = read_run(run)
    if merge:
        model = dataclasses.replace(config.model, dtype=stored_dtype(config.model))
        config = dataclasses.replace(config, model=model)
    runtime = open_runtime(config, run)
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
    if merge:
        runtime.model.set(values)
        merged = runtime.model.merge(*branches)

        def write(folder: Path) -> None:
            merged.save_pretrained(folder)  # type: ignore[operator]
            runtime.base.tokenizer.save_pretrained(folder)

        write_folder(to, write)
        dtype = runtime.config.model.dtype
        return f"merged model ({dtype}) in {to}: AutoModelForCausalLM.from_pretrained('{to}')"
    save_adapter(to, values, branches, lora=runtime.config.lora, base_name=runtime.base.name)
    return f"adapter in {to}: PeftModel.from_pretrained(base, '{to}')"
