import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from fedsdr.algorithms import server_optimizer
from fedsdr.algorithms.aggregation import Aggregation, Combined
from fedsdr.algorithms.compression import encode
from fedsdr.errors import UserError
from fedsdr.federation.checkpoint import load_state, save_state
from fedsdr.federation.round import Plan, first_state, run_round
from fedsdr.federation.sampling import sample_clients
from fedsdr.federation.update_checks import decoded
from fedsdr.types import ClientFault, ClientUpdate, LocalSettings

SHARED = {"R/a.lora_A": torch.zeros(2), "R/a.lora_B": torch.ones(1, 2)}


def plan_for(rule="fedavg", clients=("a", "b", "c"), correction="none", **changes):
    plan = Plan(0, clients, 0, 1, server_optimizer(rule), LocalSettings(correction=correction))
    return replace(plan, **changes)


def update_of(task, value, count, **changes):
    delta = {name: torch.full_like(v, value) for name, v in task.shared.items()}
    control = {name: torch.full_like(v, value) for name, v in task.control.items()}
    return replace(
        ClientUpdate(task.client_id, task.round, count, delta, control, {"R.raw.loss": 1.0}),
        **changes,
    )


def engine(**answers):
    """client -> (value, examples), a ready answer, or a function of the task."""

    def run(tasks):
        for task in tasks:
            answer = answers[task.client_id]
            yield answer(task) if callable(answer) else update_of(task, *answer)

    return run


def test_the_global_tensors_move_by_the_mean_weighted_by_examples():
    plan = plan_for(announced={"a": 10, "b": 30, "c": 60})
    state = first_state(SHARED, plan)
    after, record = run_round(state, plan, engine(a=(1.0, 10), b=(2.0, 30), c=(4.0, 60)))
    # (10 * 1 + 30 * 2 + 60 * 4) / 100 = 3.1
    torch.testing.assert_close(after.shared["R/a.lora_A"], torch.tensor([3.1, 3.1]))
    torch.testing.assert_close(after.shared["R/a.lora_B"], torch.tensor([[4.1, 4.1]]))
    assert after.round == record.round == 1
    assert after.accepted == {"a": 1, "b": 1, "c": 1}
    assert record.bytes_down == record.bytes_up == 3 * 4 * 4
    assert record.step_norm == pytest.approx(2 * 3.1)
    assert [c["num_examples"] for c in record.clients] == [10, 30, 60]
    assert [c["norm"] for c in record.clients] == pytest.approx([2.0, 4.0, 8.0])
    assert record.update_cosine == pytest.approx(1.0)  # all in one direction


def test_the_state_that_went_in_is_not_changed():
    state = first_state(SHARED, plan_for("fedadam"))
    run_round(state, plan_for("fedadam"), engine(a=(1.0, 1), b=(2.0, 1), c=(3.0, 1)))
    assert torch.equal(state.shared["R/a.lora_A"], torch.zeros(2))
    assert torch.equal(state.optimizer_state["m"]["R/a.lora_A"], torch.zeros(2))


def bad(**changes):
    return lambda task: replace(
        update_of(task, 1.0, 5, **changes), round=changes.get("round", task.round)
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (bad(delta={"R/a.lora_A": torch.full((2,), torch.nan), "R/a.lora_B": torch.ones(1, 2)}),
         "not finite"),
        (bad(delta={"R/a.lora_A": torch.full((2,), torch.inf), "R/a.lora_B": torch.ones(1, 2)}),
         "not finite"),
        (bad(delta={"R/a.lora_A": torch.ones(3), "R/a.lora_B": torch.ones(1, 2)}), "shape"),
        (bad(delta={"R/a.lora_A": torch.ones(2)}), "lacks 'R/a.lora_B'"),
        (bad(delta={**SHARED, "S/a.lora_A": torch.ones(2)}), "unexpected tensor 'S/a.lora_A'"),
        (bad(delta={n: v.half() for n, v in SHARED.items()}), "not float32"),
        (bad(round=7), "of round 7"),
        (bad(num_examples=0), "0 examples"),
        (bad(control_delta=SHARED), "control has an unexpected tensor"),
        (lambda task: ClientFault(task.client_id, task.round, "out of memory"), "out of memory"),
    ],
)  # fmt: skip
def test_a_bad_update_is_refused_recorded_and_left_out(answer, reason):
    plan = plan_for()
    after, record = run_round(
        first_state(SHARED, plan), plan, engine(a=(1.0, 10), b=answer, c=(3.0, 10))
    )
    torch.testing.assert_close(after.shared["R/a.lora_A"], torch.tensor([2.0, 2.0]))
    assert [r["id"] for r in record.refused] == ["b"]
    assert reason in record.refused[0]["reason"]
    assert "b" not in after.accepted


def plan_of_dtype(dtype):
    return replace(plan_for(), settings=LocalSettings(update_dtype=dtype))


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("bf16", 2), ("int8", 1)])
def test_an_encoded_update_counts_as_what_it_decodes_to(dtype, size):
    settings = LocalSettings(update_dtype=dtype)
    plan = plan_for(settings=settings, announced={"a": 10, "b": 10, "c": 20})

    def sent(value, count):  # powers of two are exact in every dtype
        def answer(task):
            delta = encode({n: v * 0 + value for n, v in SHARED.items()}, dtype)
            return decoded(update_of(task, 0.0, count, delta=delta), task)

        return answer

    state = first_state(SHARED, plan)
    after, record = run_round(state, plan, engine(a=sent(1, 10), b=sent(2, 10), c=sent(4, 20)))
    torch.testing.assert_close(after.shared["R/a.lora_B"], torch.tensor([[3.75, 3.75]]))
    scales = 2 * 4 if dtype == "int8" else 0  # two tensors of one row each
    assert record.bytes_up == 3 * (4 * size + scales)


def test_an_update_in_another_form_than_was_asked_for_is_refused():
    plan = plan_for(settings=LocalSettings(update_dtype="int8"))

    def wrong(task):
        return decoded(update_of(task, 0.0, 1, delta=SHARED), task)

    def infinite(task):  # 127 * 1e37 is above the largest fp32 number
        delta = encode({n: v * 0 + 1 for n, v in SHARED.items()}, "int8")
        delta["R/a.lora_A.scale"] = torch.full((1,), 1e37)
        return decoded(update_of(task, 0.0, 1, delta=delta), task)

    good = (0.0, 1)
    _, record = run_round(first_state(SHARED, plan), plan, engine(a=good, b=wrong, c=infinite))
    reasons = {refused["id"]: refused["reason"] for refused in record.refused}
    assert reasons == {
        "b": "update lacks 'R/a.lora_A.scale'",
        "c": "update 'R/a.lora_A' has a value that is not finite",
    }


def test_a_client_weighs_what_it_announced_and_cannot_count_more():
    plan = plan_for(announced={"a": 10, "b": 10, "c": 20})
    state = first_state(SHARED, plan)
    after, record = run_round(state, plan, engine(a=(1.0, 10), b=(9.0, 10**18), c=(4.0, 2)))
    assert record.refused == (
        {"id": "b", "reason": f"counts {10**18} examples, above the announced 10"},
    )
    # (10 * 1 + 20 * 4) / 30
    torch.testing.assert_close(after.shared["R/a.lora_A"], torch.full((2,), 3.0))


def test_a_client_that_announces_far_more_rows_than_the_others_weighs_as_much_as_is_allowed():
    plan = plan_for(announced={"a": 10, "b": 10, "c": 10**9}, max_weight_ratio=2.0)
    after, _ = run_round(
        first_state(SHARED, plan), plan, engine(a=(1.0, 9), b=(1.0, 9), c=(4.0, 9))
    )
    # (10 * 1 + 10 * 1 + 20 * 4) / 40
    torch.testing.assert_close(after.shared["R/a.lora_A"], torch.full((2,), 2.5))


def test_clients_that_announced_nothing_weigh_equally_whatever_they_count():
    plan = plan_for()
    after, _ = run_round(
        first_state(SHARED, plan), plan, engine(a=(1.0, 1), b=(2.0, 2**53), c=(3.0, 7))
    )
    torch.testing.assert_close(after.shared["R/a.lora_A"], torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"R.raw.loss": float("nan")}, "metric 'R.raw.loss' is nan"),
        ({"R.raw.tokens": float("inf")}, "metric 'R.raw.tokens' is inf"),
        ({"my data": 1.0}, "unknown metric 'my data'"),
        ({"x" * 100_000: 1.0}, "unknown metric"),
    ],
)
def test_a_metric_is_a_finite_number_with_a_known_name(metrics, reason):
    plan = plan_for()
    state = first_state(SHARED, plan)
    _, record = run_round(state, plan, engine(a=(1.0, 1), b=bad(metrics=metrics), c=(1.0, 1)))
    assert [r["id"] for r in record.refused] == ["b"]
    assert reason in record.refused[0]["reason"]
    assert len(record.refused[0]["reason"]) < 200


def test_a_control_delta_that_no_training_could_give_is_refused():
    plan = plan_for("scaffold", correction="scaffold")
    huge = {name: torch.full_like(x, 1e30) for name, x in SHARED.items()}
    state = first_state(SHARED, plan)
    _, record = run_round(state, plan, engine(a=(1.0, 1), b=bad(control_delta=huge), c=(1.0, 1)))
    assert "control has norm" in record.refused[0]["reason"]


def run_rounds_until_it_fails(state, plan, engine):
    for _ in range(5):
        state, _ = run_round(state, plan, engine)


def test_a_state_that_is_not_finite_is_never_kept_and_the_largest_updates_are_named():
    plan = plan_for("fedavgm")
    large = {n: torch.full_like(v, 3e38) for n, v in SHARED.items()}
    state = first_state(SHARED, plan)
    with pytest.raises(UserError, match=r"round \d: the new global state is not finite.*b 6e\+38"):
        run_rounds_until_it_fails(state, plan, engine(a=(3e38, 1), b=bad(delta=large), c=(3e38, 1)))


def test_large_values_whose_sum_overflows_are_finite_all_the_same():
    plan = plan_for(max_norm_ratio=0.0)
    large = {n: torch.full_like(v, 3e38) for n, v in SHARED.items()}
    _, record = run_round(
        first_state(SHARED, plan), plan, engine(a=(1.0, 1), b=bad(delta=large), c=(1.0, 1))
    )
    assert record.refused == ()


def test_too_few_good_updates_end_the_round_with_the_reasons():
    plan = plan_for(min_updates=2)
    with pytest.raises(UserError, match=r"1 of 3 updates.*min_updates is 2.*b: .*not finite"):
        run_round(
            first_state(SHARED, plan),
            plan,
            engine(
                a=(1.0, 1), b=(float("nan"), 1), c=lambda t: ClientFault(t.client_id, 1, "gone")
            ),
        )


@pytest.mark.parametrize(
    ("answered", "error"),
    [
        (lambda tasks: tasks[::-1], "answered a with c"),
        (lambda tasks: tasks[:2], "shorter"),
        (lambda tasks: [*tasks, tasks[-1]], "longer"),
    ],
)
def test_an_engine_gives_exactly_one_answer_for_each_task_in_their_order(answered, error):
    plan = plan_for()
    with pytest.raises(ValueError, match=error):
        run_round(
            first_state(SHARED, plan),
            plan,
            lambda tasks: [update_of(task, 1.0, 1) for task in answered(tasks)],
        )


def test_the_aggregation_is_a_value_of_the_plan_that_reads_a_stream():
    seen = []

    def largest(updates, context):  # an aggregation from outside, in three lines
        for update, weight in updates:
            seen.append((weight, context.num_asked))
            best = update
        return Combined(best)

    plan = plan_for(aggregation=Aggregation(largest), announced={"a": 5, "b": 6, "c": 7})
    after, _ = run_round(
        first_state(SHARED, plan), plan, engine(a=(1.0, 5), b=(2.0, 6), c=(3.0, 7))
    )
    assert seen == [(5, 3), (6, 3), (7, 3)]
    torch.testing.assert_close(after.shared["R/a.lora_A"], torch.full((2,), 3.0))


def test_updates_are_consumed_one_at_a_time():
    alive = []

    def run(tasks):
        for task in tasks:
            assert len(alive) == 0 or alive[-1] == "taken"
            alive.append("given")
            yield update_of(task, 1.0, 1)
            alive[-1] = "taken"

    plan = plan_for()
    run_round(first_state(SHARED, plan), plan, run)
    assert alive == ["taken"] * 3


def test_scaffolds_control_moves_by_the_mean_times_the_share_that_took_part():
    plan = plan_for("scaffold", correction="scaffold", clients=("a", "b", "c", "d"))
    state = first_state(SHARED, plan)
    silent = lambda t: ClientFault(t.client_id, t.round, "gone")  # noqa: E731
    after, _ = run_round(state, plan, engine(a=(1.0, 90), b=(3.0, 10), c=silent, d=silent))
    # mean(1, 3) * 2 / 4 = 1, not weighted by examples
    torch.testing.assert_close(after.control["R/a.lora_A"], torch.tensor([1.0, 1.0]))


def test_a_task_says_when_the_client_was_last_counted():
    plan = plan_for()
    state = first_state(SHARED, plan)
    lost = lambda t: ClientFault(t.client_id, t.round, "gone")  # noqa: E731
    state, _ = run_round(state, plan, engine(a=(1.0, 1), b=lost, c=(1.0, 1)))
    seen = {}

    def run(tasks):
        for task in tasks:
            seen[task.client_id] = task.accepted_round
            yield update_of(task, 1.0, 1)

    run_round(state, plan, run)
    assert seen == {"a": 1, "b": 0, "c": 1}


def test_every_client_is_chosen_equally_often_and_by_the_seed_alone():
    clients = [f"c{i}" for i in range(10)]
    counts = dict.fromkeys(clients, 0)
    for round in range(2000):
        chosen = sample_clients(clients, 3, 1, round)
        assert len(set(chosen)) == 3
        assert chosen == sorted(chosen) == sample_clients(clients[::-1], 3, 1, round)
        for client in chosen:
            counts[client] += 1
    # 2,000 draws at 0.3: standard deviation 20.5; five of them.
    assert all(abs(count - 600) < 103 for count in counts.values())
    assert sample_clients(clients, 3, 1, 5) != sample_clients(clients, 3, 2, 5)
    assert sample_clients(clients, 0, 1, 1) == sorted(clients)


def test_a_checkpoint_gives_back_the_same_state(tmp_path):
    plan = plan_for("fedyogi", correction="scaffold")
    state = first_state(SHARED, plan)
    assert load_state(tmp_path) is None
    for _ in range(2):
        state, _ = run_round(state, plan, engine(a=(1.0, 1), b=(0.5, 2), c=(3.0, 1)))
        save_state(tmp_path, state)
    read = load_state(tmp_path)
    assert (read.round, read.accepted) == (2, state.accepted)
    for got, want in (
        (read.shared, state.shared),
        (read.control, state.control),
        (read.optimizer_state["m"], state.optimizer_state["m"]),
        (read.optimizer_state["v"], state.optimizer_state["v"]),
    ):
        assert got.keys() == want.keys()
        assert all(torch.equal(got[n], want[n]) for n in got)
    assert [p.name for p in tmp_path.iterdir()] == ["round-0002"]


def test_files_of_other_programs_beside_the_checkpoints_are_left_alone(tmp_path):
    plan = plan_for()
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "round-0001.bak").mkdir()
    state = first_state(SHARED, plan)
    for _ in range(2):
        state, _ = run_round(state, plan, engine(a=(1.0, 1), b=(1.0, 1), c=(1.0, 1)))
        save_state(tmp_path, state)
    assert load_state(tmp_path).round == 2
    left = {".DS_Store", "round-0001.bak", "round-0002"}
    assert {p.name for p in tmp_path.iterdir()} == left


def test_round_10000_is_newer_than_round_9999(tmp_path):
    plan = plan_for()
    one, _ = run_round(first_state(SHARED, plan), plan, engine(a=(1.0, 1), b=(1.0, 1), c=(1.0, 1)))
    for number in (10_000, 9_999):
        save_state(tmp_path / str(number), replace(one, round=number))
        (tmp_path / str(number) / f"round-{number}").rename(tmp_path / f"round-{number}")
    assert load_state(tmp_path).round == 10_000


@contextmanager
def files_of_at_most(size: int):
    """Let the system refuse what a full disk would refuse."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    plan = plan_for("fedadam")
    large = {name: torch.zeros(64, 64) for name in SHARED}
    one, _ = run_round(first_state(large, plan), plan, engine(a=(1.0, 1), b=(2.0, 1), c=(3.0, 1)))
    save_state(tmp_path, one)
    two, _ = run_round(one, plan, engine(a=(1.0, 1), b=(2.0, 1), c=(3.0, 1)))
    with files_of_at_most(4096), pytest.raises(UserError, match="round-0002: cannot be written"):
        save_state(tmp_path, two)
    assert load_state(tmp_path).round == 1
    assert [p.name for p in tmp_path.iterdir()] == ["round-0001"]


def test_a_broken_checkpoint_is_named(tmp_path):
    plan = plan_for()
    one, _ = run_round(first_state(SHARED, plan), plan, engine(a=(1.0, 1), b=(1.0, 1), c=(1.0, 1)))
    save_state(tmp_path, one)
    (tmp_path / "round-0001" / "shared.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"round-0001.*damaged"):
        load_state(tmp_path)
