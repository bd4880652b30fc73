"""An update far larger than the others of its round is refused; expected numbers are by hand."""

import tempfile
from dataclasses import replace

import pytest
import torch

from fedsdr.algorithms import server_optimizer
from fedsdr.algorithms.aggregation import Aggregation
from fedsdr.algorithms.combining import noisy_mean
from fedsdr.federation import norm_bound
from fedsdr.federation.norm_bound import norms_too_large, within_norm_bound
from fedsdr.federation.plan import Plan, first_state
from fedsdr.federation.privacy_accounting import Privacy
from fedsdr.federation.round import run_round
from fedsdr.federation.round_log import RoundLog
from fedsdr.types import ClientUpdate, LocalSettings

SHARED = {"R/b": torch.zeros(3), "R/a": torch.zeros(1)}  # a vector of equal values x has norm 2 x


def plan_for(ratio=10.0, **changes):
    settings = LocalSettings(batch_size=4)
    plan = Plan(0, ("a", "b", "c", "d"), 0, 1, server_optimizer("fedavg"), settings)
    return replace(plan, max_norm_ratio=ratio, **changes)


def update_of(client, value, control=None):
    delta = {name: torch.full_like(x, value) for name, x in SHARED.items()}
    control = {} if control is None else {n: torch.full_like(x, control) for n, x in SHARED.items()}
    return ClientUpdate(client, 1, 4, delta, control)


def engine(**values):
    return lambda tasks: [update_of(task.client_id, values[task.client_id]) for task in tasks]


def test_an_update_far_above_the_median_norm_of_its_round_is_refused_and_recorded():
    plan = plan_for()
    after, record = run_round(
        first_state(SHARED, plan), plan, engine(a=1.0, b=2.0, c=3.0, d=-1000.0)
    )
    # norms 2, 4, 6, 2000; their median is 5
    assert record.refused == (
        {
            "id": "d",
            "reason": "update has norm 2e+03, above federation.max_norm_ratio 10 x 5, the median "
            "of the round",
        },
    )
    torch.testing.assert_close(after.shared["R/b"], torch.full((3,), 2.0))  # the mean of 1, 2, 3
    assert after.accepted == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("norms", "announced", "refused"),
    [
        ({"a": 1.0, "b": 1.0, "c": 10.0}, {}, set()),  # 10 x the median is still allowed
        ({"a": 1.0, "b": 1.0, "c": 10.1}, {}, {"c"}),
        # 44 examples are 11 steps of 4: 10.1 / 11 is below the usual 1 a step.
        ({"a": 1.0, "b": 1.0, "c": 10.1}, {"a": 4, "b": 4, "c": 44}, set()),
        ({"a": 1.0, "b": 1.0, "c": 111.0}, {"a": 4, "b": 4, "c": 44}, {"c"}),  # 10.09 a step
        ({"a": 1.0, "b": 1.0, "c": 10.1}, {"a": 3, "b": 2, "c": 4}, {"c"}),  # one step each
        # a client of one step is not refused beside those of 40, which move further
        ({"a": 8.0, "b": 8.0, "c": 5.0}, {"a": 160, "b": 160, "c": 4}, set()),
        ({"a": 1.0, "b": 100.0}, {}, set()),  # of two, nobody can tell which one is wrong
        ({"a": 0.0, "b": 0.0, "c": 1.0}, {}, set()),  # a median of zero is no measure
        ({"a": 1.0, "b": 1.0, "c": 10.1}, {"a": 0, "b": 0, "c": 0}, {"c"}),
        ({"a": 1.0, "b": 1.0, "c": 50.0, "d": 99.0}, {}, set()),  # the median is 25.5
        ({"a": 1.0, "b": 2.0, "c": 3.0, "d": 999.0, "e": 999.0}, {}, {"d", "e"}),
    ],
)
def test_the_bound_holds_for_the_norm_and_for_the_norm_per_step(norms, announced, refused):
    assert norms_too_large(norms, plan_for(announced=announced)).keys() == refused


def passed(updates, plan):
    log = RoundLog(1, plan)
    return list(within_norm_bound(updates, plan, log)), log.refused


def test_a_ratio_of_zero_and_central_privacy_switch_the_bound_off():
    updates = [update_of("a", 1.0), update_of("b", 1.0), update_of("c", 1e6)]
    private = plan_for(privacy=Privacy("central"), aggregation=Aggregation(noisy_mean(1.0, 1.0)))
    for plan in (plan_for(0.0), private):
        assert passed(updates, plan) == (updates, [])


@pytest.mark.parametrize("in_memory", [2**26, 8], ids=["in memory", "on disk"])
def test_updates_come_back_from_the_temporary_file_bit_for_bit(in_memory, monkeypatch):
    monkeypatch.setattr(norm_bound, "_MEMORY", in_memory)
    monkeypatch.setattr(tempfile, "tempdir", None)
    torch.manual_seed(0)
    sent = []
    for client in "abc":
        tensors = {"R/z": torch.randn(2, 3), "R/empty": torch.zeros(0, 3), "R/a": torch.randn(())}
        control = {name: torch.randn(x.shape).T for name, x in tensors.items() if x.dim() == 2}
        sent.append(ClientUpdate(client, 1, 4, tensors, control, {"R.raw.loss": 1.5}))
    got, _ = passed(sent, plan_for())
    for before, after in zip(sent, got, strict=True):
        for name in ("delta", "control_delta"):
            a, b = getattr(before, name), getattr(after, name)
            assert list(a) == list(b)  # the order of a sum decides its last bit
            assert all(torch.equal(a[n], b[n]) for n in a)
        assert replace(before, delta={}, control_delta={}) == replace(
            after, delta={}, control_delta={}
        )


def test_nothing_of_the_waiting_updates_stays_on_the_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(norm_bound, "_MEMORY", 8)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []
    for update in within_norm_bound(
        [update_of(c, 1.0, control=2.0) for c in "abc"], plan_for(), RoundLog(1, plan_for())
    ):
        seen.append(update.control_delta["R/a"].item())
        assert list(tmp_path.iterdir()) == []  # the file has no name, so a kill leaves nothing
    assert seen == [2.0, 2.0, 2.0]
