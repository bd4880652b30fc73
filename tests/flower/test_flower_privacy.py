"""Differential privacy over Flower: a site says itself what it sends."""

import json

import pytest

pytest.importorskip("flwr")

from fake_grid import FakeGrid

from fedsdr.federation.privacy_accounting import Privacy, epsilon_spent
from fedsdr.flower import client_app, nodes, server_app
from fedsdr.flower.run_config import to_run_config
from fedsdr.progress import SILENT, Progress

NAMES = ("bank", "clinic", "school")
LOCAL = {"privacy.mode": "local", "privacy.clip_norm": 0.5, "privacy.noise_multiplier": 2.0}


@pytest.fixture
def serve(write_config, tmp_path, data_folder, monkeypatch):
    """Return a function that runs a server's configuration over three sites, `pins` the keys that
    the sites insist on; it returns the records, what was said, and the grid."""
    pytest.importorskip("dp_accounting")
    for module in (nodes, server_app):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.001)
    for opened in (client_app._held, client_app._all_clients, client_app._site):
        opened.cache_clear()

    def run(*overrides: str, pins: dict | None = None):
        config = write_config(
            "method.name=plain", "engine.join_seconds=5", "engine.round_seconds=5", *overrides
        )
        nodes = {
            number: {
                "client": name,
                "data": str(data_folder / f"{name}.jsonl"),
                "state-dir": str(tmp_path / "sites" / name),
            }
            | (pins or {})
            for number, name in enumerate(NAMES, 1)
        }
        out, said = tmp_path / "server", []
        values = to_run_config(config) | {"out": str(out), "experiment": "trial"}
        grid = FakeGrid(client_app.app, nodes, values)
        progress = Progress(said.append, SILENT.bar)
        server_app.serve(grid, config, out, progress, rewriting=False)
        lines = (out / "rounds.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], said, grid

    return run


def test_a_site_that_adds_noise_itself_tells_no_counts_and_no_losses(serve):
    records, said, _ = serve(
        "privacy.mode=local", "privacy.clip_norm=0.5", "privacy.noise_multiplier=2.0",
        "engine.sites=3", "federation.rounds=2", pins=LOCAL,
    )  # fmt: skip
    for record in records:
        assert record["clients"] == [{"id": name, "num_examples": 1} for name in NAMES]
    joined = {line for line in said if "joined" in line}
    assert joined == {f"client '{name}' joined" for name in NAMES}
    assert records[1]["epsilon"] == epsilon_spent(Privacy("local", 0.5, 2.0), [(3, 3)] * 2)
    assert f"epsilon {records[1]['epsilon']:.3g}" in said[-1]


@pytest.mark.parametrize(
    "server",
    [
        (),
        ("privacy.mode=central", "privacy.clip_norm=0.5"),
        ("privacy.mode=local", "privacy.clip_norm=0.5", "privacy.noise_multiplier=0.01"),
    ],
)
def test_a_server_cannot_ask_a_site_for_less_noise_than_the_site_insists_on(server, serve):
    with pytest.raises(Exception, match=r"0 of 3 updates were accepted.*local_noise 1, not"):
        serve("engine.sites=3", *server, pins=LOCAL)


def test_a_server_cannot_change_the_method_of_a_site(serve):
    with pytest.raises(Exception, match=r"0 of 3 .*with method 'fedsdr'.* not .*method 'plain'"):
        serve("engine.sites=3", pins={"method.name": "fedsdr"})


def test_clipped_updates_of_central_privacy_are_counted_over_the_wire(serve):
    records, _, _ = serve("privacy.mode=central", "privacy.clip_norm=0.01", "engine.sites=3")
    assert [record["refused"] for record in records] == [[], [], []]
    assert all(c["update.norm"] > 0.01 for record in records for c in record["clients"])


def test_a_site_that_insists_on_a_part_of_privacy_must_name_all_of_it(serve):
    with pytest.raises(Exception, match="0 of 3 sites joined"):
        serve("privacy.mode=local", "engine.sites=3", pins={"privacy.mode": "local"})


def test_a_site_takes_part_in_no_more_rounds_than_it_insists_on(serve):
    with pytest.raises(Exception, match=r"round 2: 0 of 3 .*takes part in rounds 1 to 1"):
        serve(
            "privacy.mode=local", "privacy.clip_norm=0.5", "privacy.noise_multiplier=2.0",
            "engine.sites=3", "federation.rounds=2", pins=LOCAL | {"federation.rounds": 1},
        )  # fmt: skip


def test_a_site_answers_no_round_before_the_first_since_nothing_would_be_kept_of_it(
    write_config, tmp_path, deploy
):
    def asked_for_round_0(grid, message, context):
        if message.metadata.message_type == "train":
            message.content["task"]["round"] = 0
        return grid.app(message, context)

    with pytest.raises(Exception, match=r"0 of 3 .*takes part in rounds 1 to 3"):
        deploy(write_config("method.name=plain"), answer=asked_for_round_0)
    assert not list((tmp_path / "sites").rglob("round-*"))


def test_a_site_can_insist_on_the_name_of_a_run(serve):
    with pytest.raises(Exception, match="0 of 3 sites joined"):
        serve("engine.sites=3", pins={"experiment": "another"})
