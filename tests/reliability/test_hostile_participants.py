"""Whatever one of three participants answers, the round is right without it or ends in one line."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from fedsdr.algorithms import server_optimizer
from fedsdr.errors import UserError
from fedsdr.federation.round import Plan, first_state, run_round
from fedsdr.types import ClientFault, ClientUpdate, LocalSettings

A, B = "R/a.lora_A", "R/a.lora_B"
SHARED = {A: torch.zeros(2, 3), B: torch.ones(4, 2)}
NAN, INF = math.nan, math.inf


def update(task, value=1.0, **changes):
    delta = {name: torch.full_like(x, value) for name, x in task.shared.items()}
    control = {name: torch.zeros_like(x) for name, x in task.control.items()}
    made = ClientUpdate(task.client_id, task.round, 10, delta, control, {"R.raw.loss": 1.0})
    return replace(made, **changes)


def one_tensor(value):
    return lambda task: update(task, delta={A: value, B: torch.ones(4, 2)})


def everywhere(value):
    return lambda task: update(task, value)


def counting(count):
    return lambda task: update(task, -1.0, num_examples=count)


def metric(name, value):
    return lambda task: update(task, metrics={name: value})


REFUSED = {
    "NaN": everywhere(NAN),
    "infinity": everywhere(INF),
    "minus infinity": everywhere(-INF),
    "one NaN": one_tensor(torch.tensor([[0, 0, 0], [0, 0, NAN]])),
    "a missing tensor": lambda t: update(t, delta={A: torch.ones(2, 3)}),
    "no tensor": lambda t: update(t, delta={}),
    "S beside R": lambda t: update(t, delta={**SHARED, "S/a.lora_A": torch.ones(2, 3)}),
    "a renamed tensor": lambda t: update(t, delta={A: torch.ones(2, 3), "R/b": SHARED[B]}),
    "a scalar": one_tensor(torch.tensor(1.0)),
    "a shape that broadcasts": one_tensor(torch.ones(1, 1)),
    "a transposed tensor": one_tensor(torch.ones(3, 2)),
    "an empty tensor": one_tensor(torch.ones(0, 3)),
    "half precision": one_tensor(torch.ones(2, 3).half()),
    "double precision": one_tensor(torch.ones(2, 3).double()),
    "integers": one_tensor(torch.ones(2, 3, dtype=torch.int32)),
    "booleans": one_tensor(torch.ones(2, 3, dtype=torch.bool)),
    "no example": counting(0),
    "a negative count": counting(-1),
    "more examples than announced": counting(11),
    "10**18 examples": counting(10**18),
    "10**30 examples": counting(10**30),
    "NaN examples": counting(NAN),
    "infinite examples": counting(INF),
    "half an example": counting(0.5),
    "the round before": lambda t: update(t, round=t.round - 1),
    "the round after": lambda t: update(t, round=t.round + 1),
    "a metric that is NaN": metric("R.raw.loss", NAN),
    "a metric that is infinite": metric("R.raw.loss", INF),
    "a metric that is text": metric("R.raw.loss", "1"),
    "a metric that is a list": metric("R.raw.loss", [1.0]),
    "an unknown metric": metric("secret", 1.0),
    "escape codes in a metric's name": metric("\x1b[2J", 1.0),
    "a metric's name of 100 kB": metric("x" * 100_000, 1.0),
    "300 metrics": lambda t: update(t, metrics={f"m{i}": 1.0 for i in range(300)}),
    "an unasked control variate": lambda t: update(t, control_delta={A: torch.ones(2, 3)}),
    "a fault": lambda t: ClientFault(t.client_id, t.round, "no"),
}
HARMLESS = {
    "zeros": everywhere(0.0),
    "the smallest number": everywhere(1e-45),
    "one example": lambda t: update(t, num_examples=1),
    "no metrics": lambda t: update(t, metrics={}),
    "views that share memory": one_tensor(torch.ones(1).expand(2, 3)),
    "a view of a transposed tensor": one_tensor(torch.ones(3, 2).T),
}


def plan_of(**changes):
    plan = Plan(0, ("a", "b", "c"), 0, 1, server_optimizer("fedavg"), LocalSettings())
    return replace(plan, announced=dict.fromkeys("abc", 10), **changes)


def round_with(answer, **changes):
    plan = plan_of(**changes)
    return run_round(
        first_state(SHARED, plan),
        plan,
        lambda tasks: [answer(t) if t.client_id == "b" else update(t) for t in tasks],
    )


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_answer_is_refused_and_the_others_give_the_round(case):
    state, record = round_with(REFUSED[case])
    assert [refused["id"] for refused in record.refused] == ["b"]
    assert [client["id"] for client in record.clients] == ["a", "c"]
    assert torch.equal(state.shared[A], torch.ones(2, 3))
    assert torch.equal(state.shared[B], torch.full((4, 2), 2.0))
    assert "b" not in state.accepted
    text = json.dumps(asdict(record), allow_nan=False)
    assert len(text) < 2000
    assert "\\u001b" not in text


@pytest.mark.parametrize("case", HARMLESS)
def test_an_odd_answer_counts_as_what_it_is(case):
    state, record = round_with(HARMLESS[case])
    assert record.refused == ()
    assert (state.shared[A] >= 0).all()
    assert (state.shared[A] <= 1).all()


@pytest.mark.parametrize("value", [1e30, -1e30, 3e38, -3.4e38])
def test_a_huge_finite_update_never_makes_the_state_infinite(value):
    said, kept = "", SHARED
    try:
        kept = round_with(everywhere(value))[0].shared
    except UserError as error:  # names the clients whose updates are the largest
        said = str(error)
    assert "\n" not in said
    assert all(torch.isfinite(x).all() for x in kept.values())


@pytest.mark.parametrize("value", [2.0, 1e3, 1e30, 3e38])
def test_a_bound_on_the_norm_refuses_a_larger_update(value):
    state, record = round_with(everywhere(value), max_update_norm=4.0)
    assert [refused["id"] for refused in record.refused] == ["b"]
    assert torch.equal(state.shared[A], torch.ones(2, 3))
