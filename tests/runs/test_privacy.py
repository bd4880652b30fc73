"""What crosses an engine: R and numbers, never S, raw text or rewrites."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from fedsdr.data.clients import load_clients
from fedsdr.models.adapters import load_adapter
from fedsdr.progress import SILENT
from fedsdr.runs import run as run_module
from fedsdr.runs.in_process import in_process
from fedsdr.runs.run import run_experiment
from fedsdr.types import ClientFault, ClientTask, ClientUpdate, LocalSettings


def test_no_type_that_crosses_an_engine_has_room_for_text_or_a_private_branch():
    def fields(kind):
        return {f.name for f in dataclasses.fields(kind)}

    assert fields(ClientTask) == {
        "round", "client_id", "seed", "shared", "control", "settings", "accepted_round",
        "run_id",
    }  # fmt: skip
    assert fields(ClientUpdate) == {
        "client_id", "round", "num_examples", "delta", "control_delta", "metrics"
    }  # fmt: skip
    assert fields(ClientFault) == {"client_id", "round", "reason"}
    scalars = {"int", "float", "bool", "str"}
    kinds = {
        str(f.type.__name__) for f in dataclasses.fields(LocalSettings) if isinstance(f.type, type)
    }
    assert kinds <= scalars


def leaks(crossed, private, texts):
    """Return what of S or of the clients' texts is in the values that crossed."""
    found = []
    for value in crossed:
        tensors = [t for f in ("shared", "control", "delta", "control_delta")
                   for t in getattr(value, f, {}).values()]  # fmt: skip
        for name, s in private.items():
            found += [name for t in tensors if t.shape == s.shape and torch.allclose(t, s)]
        written = repr({k: v for k, v in vars(value).items() if not isinstance(v, dict)})
        written += repr(getattr(value, "metrics", ""))
        found += [text for text in texts if text in written]
    return found


@pytest.mark.parametrize("leaking", [False, True])
def test_neither_s_nor_text_is_in_any_message_of_a_run(
    leaking, write_config, tmp_path, monkeypatch
):
    crossed = []

    def recording(*engine):
        run = in_process(*engine)

        def run_clients(tasks):
            crossed.extend(tasks)
            for answer in run(tasks):
                if leaking and answer.client_id == "bank":
                    s = load_adapter(tmp_path / "run/clients/bank", "S")
                    answer = dataclasses.replace(answer, delta={**answer.delta, **s})
                crossed.append(answer)
                yield answer

        return run_clients

    monkeypatch.setattr(run_module, "in_process", recording)
    config = write_config("federation.rounds=2")
    run_experiment(config, tmp_path / "run", SILENT)
    private = {
        f"{client} {folder.name} {name}": value
        for client in ("bank", "clinic", "school")
        for folder in (tmp_path / "run/clients" / client).glob("round-*")
        for name, value in load_adapter(folder, "S").items()
    }
    clients = load_clients(config.data)
    texts = {e.response for c in clients for e in (*c.raw, *c.test)}
    texts |= {e.instruction for c in clients for e in (*c.raw, *c.test)}
    assert len(crossed) == 12
    assert len(private) > 10
    assert bool(leaks(crossed, private, texts)) == leaking
    # What the server keeps is as clean, even of a client that tried: its update was refused.
    kept = load_file(tmp_path / "run/checkpoint/round-0002/shared.safetensors")
    assert {name[:2] for name in kept} == {"R/"}
    records = (tmp_path / "run/rounds.jsonl").read_text()
    assert not any(text in records for text in texts)
    assert ("unexpected tensor" in records) == leaking
