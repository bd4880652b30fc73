"""Secret texts of clients are searched in everything that a run writes, sends, logs or reports."""

import json

import pytest
from fake_endpoint import completion, server
from safetensors.torch import load_file
from small_run import CONFIG

from fedsdr.config import load_config

RAW, REWRITE, PASSWORD = "sentinel-raw-7f3a", "sentinel-rewrite-91bc", "sentinel-password-52de"
PRIVATE = ("clients", "distilled", "answers")  # the folders of a client: they stay there


@pytest.fixture
def secret_config(tmp_path, model_folder, monkeypatch):
    """Return a configuration whose rows and rewrites have sentinels, and its teacher's URL one."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    for name in ("bank", "clinic", "school"):
        rows = [
            {"instruction": f"{RAW} q{i}", "output": f"{name} {RAW} {i}", "category": RAW}
            for i in range(6)
        ]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with server(lambda number, body: completion(f"said {REWRITE} {number}")) as endpoint:
        url = endpoint.url.replace("//", f"//me:{PASSWORD}@")
        text = CONFIG.format(model=model_folder, data=data).replace(
            'engine = "transformers"', f'engine = "openai"\nmodel = "m"\nurl = "{url}"'
        )
        (tmp_path / "config.toml").write_text(text)
        yield tmp_path / "config.toml"


def secrets_of(run) -> list[bytes]:
    """Return the sentinels and 32 bytes of each tensor of S, from which one could search it."""
    tensors = [
        value
        for path in (run / "clients").rglob("adapter_model.safetensors")
        for value in load_file(path).values()
        if value.any()
    ]
    assert len(tensors) > 10
    texts = (RAW.encode(), REWRITE.encode(), PASSWORD.encode())
    return [*texts, *(t.numpy().tobytes()[:32] for t in tensors)]


def leaks(secrets, content: bytes) -> list[bytes]:
    return [secret for secret in secrets if secret in content]


def test_no_secret_of_a_client_is_in_what_a_run_writes_logs_or_reports(
    secret_config, tmp_path, fedsdr
):
    run, said = tmp_path / "run", ""
    for words in (
        ("run", secret_config, "--out", run),
        ("evaluate", run),
        ("report", run, "--out", tmp_path / "handed on" / "report.html"),
        ("export", run, "--out", tmp_path / "handed on" / "adapter"),
        ("compare", secret_config, "--methods", "plain", "--out", tmp_path / "study"),
    ):
        code, out, err = fedsdr(*words)
        assert code == 0, err
        said += out + err
    secrets = secrets_of(run)
    found = {"log": leaks(secrets, said.encode())}
    kept = 0
    for root in (run, tmp_path / "handed on", tmp_path / "study"):
        for path in (p for p in root.rglob("*") if p.is_file()):
            if not {*path.relative_to(root).parts} & {*PRIVATE}:
                found[str(path)] = leaks(secrets, path.read_bytes())
            else:
                kept += bool(leaks(secrets, path.read_bytes()))
                assert oct(path.stat().st_mode & 0o077) == "0o0", path
    assert {name: leaked for name, leaked in found.items() if leaked} == {}
    assert kept > 6  # the search finds what is there


def test_no_secret_of_a_client_is_in_a_message_of_an_endpoint_that_fails(
    secret_config, tmp_path, fedsdr
):
    with server(lambda number, body: (500, f"{RAW} {body}".encode())) as broken:
        url = broken.url.replace("//", f"//me:{PASSWORD}@")
        words = ("run", secret_config, "--out", tmp_path / "run", "--set", f'teacher.url="{url}"')
        code, out, err = fedsdr(*words)
    assert code == 2
    assert "status 500" in err
    assert not any(secret in out + err for secret in (RAW, PASSWORD))


def test_no_secret_of_a_client_is_in_a_message_over_flower(secret_config, tmp_path, deploy):
    pytest.importorskip("flwr")
    wires = []

    def answer(grid, message, context):
        wires.append(grid)
        return grid.app(message, context)

    log = []
    deploy(load_config(secret_config), data=tmp_path / "data", answer=answer, log=log.append)
    wire = wires[0].wire
    sites = tmp_path / "sites"
    secrets = [RAW.encode(), REWRITE.encode()]
    secrets += [
        value.numpy().tobytes()[:32]
        for path in sites.rglob("clients/*/adapter_model.safetensors")
        for value in load_file(path).values()
        if value.any()
    ]
    assert len(secrets) > 10
    assert len(wire) > 12
    assert [found for data in wire if (found := leaks(secrets, data))] == []
    assert leaks(secrets, "\n".join(log).encode()) == []
    for path in (p for p in (tmp_path / "server").rglob("*") if p.is_file()):
        assert leaks(secrets, path.read_bytes()) == [], path
