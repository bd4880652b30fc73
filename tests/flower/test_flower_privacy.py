"""Differential privacy over Flower: a site decides itself what it sends."""

import pytest

pytest.importorskip("flwr")
pytest.importorskip("dp_accounting")

from fake_grid import NAMES, records_of

from fedsdr.federation.privacy_accounting import Privacy, epsilon_spent

LOCAL = {"privacy.mode": "local", "privacy.clip_norm": 0.5, "privacy.noise_multiplier": 2.0}
LOCAL_SERVER = tuple(f"{key}={value}" for key, value in LOCAL.items())


@pytest.fixture
def serve(write_config, tmp_path, deploy):
    """Return a function that runs a server's configuration over three sites that pin `pins`; it
    returns the records and the log."""

    def run(*overrides: str, pins: dict | None = None):
        log = []
        deploy(write_config("method.name=plain", *overrides), own=pins or {}, log=log.append)
        return records_of(tmp_path / "server"), log

    return run


def test_a_site_that_adds_noise_itself_sends_no_counts_and_no_losses(serve):
    records, log = serve(*LOCAL_SERVER, "federation.rounds=2", pins=LOCAL)
    for record in records:
        assert record["clients"] == [{"id": name, "num_examples": 1} for name in NAMES]
    joined = {line for line in log if "joined" in line}
    assert joined == {f"client '{name}' joined" for name in NAMES}
    assert records[1]["epsilon"] == epsilon_spent(Privacy("local", 0.5, 2.0), [(3, 3)] * 2)
    assert f"epsilon {records[1]['epsilon']:.3g}" in log[-1]


@pytest.mark.parametrize(
    "server",
    [
        (),
        ("privacy.mode=central", "privacy.clip_norm=0.5"),
        (*LOCAL_SERVER, "privacy.noise_multiplier=0.01"),
    ],
)
def test_a_server_cannot_ask_a_site_for_less_noise_than_the_site_pins(server, serve):
    with pytest.raises(Exception, match=r"0 of 3 updates were accepted.*local_noise 1, not"):
        serve(*server, pins=LOCAL)


def test_a_server_cannot_change_the_method_of_a_site(serve):
    with pytest.raises(Exception, match=r"0 of 3 .*with method 'fedsdr'.* not .*method 'plain'"):
        serve(pins={"method.name": "fedsdr"})


def test_clipped_updates_of_central_privacy_are_accepted_over_the_wire(serve):
    records, _ = serve("privacy.mode=central", "privacy.clip_norm=0.01")
    assert [record["refused"] for record in records] == [[], [], []]
    assert all(c["update.norm"] > 0.01 for record in records for c in record["clients"])


def test_a_site_that_pins_a_part_of_privacy_must_pin_all_of_it(serve):
    with pytest.raises(Exception, match="0 of 3 sites joined"):
        serve("privacy.mode=local", pins={"privacy.mode": "local"})


def test_a_site_takes_part_in_no_more_rounds_than_it_pins(serve):
    with pytest.raises(Exception, match=r"round 2: 0 of 3 .*takes part in rounds 1 to 1"):
        serve(*LOCAL_SERVER, "federation.rounds=2", pins=LOCAL | {"federation.rounds": 1})


def test_a_site_refuses_a_round_before_the_first_since_it_would_keep_no_state(
    write_config, tmp_path, deploy
):
    def asked_for_round_0(grid, message, context):
        if message.metadata.message_type == "train":
            message.content["task"]["round"] = 0
        return grid.app(message, context)

    with pytest.raises(Exception, match=r"0 of 3 .*takes part in rounds 1 to 3"):
        deploy(write_config("method.name=plain"), answer=asked_for_round_0)
    assert not list((tmp_path / "sites").rglob("round-*"))


def test_a_site_can_pin_the_name_of_a_run(serve):
    with pytest.raises(Exception, match="0 of 3 sites joined"):
        serve(pins={"experiment": "another"})
