"""Every server optimizer through one contract, and each through two rounds worked by hand."""

import dataclasses
from math import nan, sqrt

import pytest
import torch
from safetensors.torch import load, save

from fedsdr.algorithms import ALGORITHMS, server_optimizer
from fedsdr.errors import UserError
from fedsdr.tensors import Tensors, scale, zeros_like

NAMES = list(ALGORITHMS)
every_algorithm = pytest.mark.parametrize("name", NAMES)
with_lr = pytest.mark.parametrize(
    "name", [n for n in NAMES if "lr" in ALGORITHMS[n].hyperparameters]
)

# paper.md, section 5: the slots of state and the defaults of each optimizer.
PAPER = {
    "fedavg": ([], {}),
    "fedprox": ([], {}),
    "scaffold": ([], {}),
    "fedavgm": (["m"], {"lr": 1.0, "beta": 0.9}),
    "fedadagrad": (["v"], {"lr": 1e-3, "tau": 1e-3}),
    "fedadam": (["m", "v"], {"lr": 1e-3, "b1": 0.9, "b2": 0.99, "tau": 1e-3}),
    "fedyogi": (["m", "v"], {"lr": 1e-3, "b1": 0.9, "b2": 0.99, "tau": 1e-3}),
}


def random_delta(seed: int, size: float = 1.0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "R/q.lora_A": size * torch.randn(2, 3, generator=generator),
        "R/q.lora_B": size * torch.randn(4, 2, generator=generator),
    }


def after_rounds(name: str, rounds: int):
    """Return an optimizer with the state that it has after some rounds."""
    optimizer = server_optimizer(name)
    state = optimizer.init(random_delta(0))
    for seed in range(rounds):
        _, state = optimizer.update(random_delta(seed), state)
    return optimizer, state


def assert_same(a: Tensors, b: Tensors) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def flat(tree) -> Tensors:
    return {f"{slot}/{name}": x for slot, tensors in tree.items() for name, x in tensors.items()}


def test_the_table_of_algorithms_is_that_of_the_paper():
    assert NAMES == [
        "fedavg", "fedavgm", "fedprox", "scaffold", "fedadagrad", "fedadam", "fedyogi",
    ]  # fmt: skip
    corrections = {name: a.correction for name, a in ALGORITHMS.items() if a.correction != "none"}
    assert corrections == {"fedprox": "fedprox", "scaffold": "scaffold"}


@every_algorithm
def test_the_hyperparameters_and_their_defaults_are_those_of_the_paper(name):
    slots, defaults = PAPER[name]
    assert ALGORITHMS[name].hyperparameters == tuple(defaults)
    optimizer, explicit = server_optimizer(name), server_optimizer(name, **defaults)
    state = optimizer.init(random_delta(0))
    assert list(state) == slots
    assert_same(
        optimizer.update(random_delta(1), state)[0], explicit.update(random_delta(1), state)[0]
    )


@every_algorithm
def test_state_starts_as_fp32_zeros_of_the_same_names_and_shapes(name):
    bf16 = {n: x.bfloat16() for n, x in random_delta(0).items()}
    for tensors in server_optimizer(name).init(bf16).values():
        assert_same(tensors, zeros_like(bf16))
        assert all(x.dtype == torch.float32 for x in tensors.values())


@every_algorithm
def test_a_zero_update_from_zero_state_moves_nothing(name):
    optimizer = server_optimizer(name)
    zeros = zeros_like(random_delta(0))
    step, state = optimizer.update(zeros, optimizer.init(zeros))
    assert_same(step, zeros)  # sqrt(0) + tau is not zero: no division by zero
    for tensors in state.values():
        assert_same(tensors, zeros)


@every_algorithm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_names_and_shapes_are_kept_and_results_are_fp32_whatever_the_input(name, dtype):
    optimizer, state = after_rounds(name, 2)
    delta = {n: x.to(dtype) for n, x in random_delta(7).items()}
    step, after = optimizer.update(delta, state)
    assert list(after) == list(state)
    for tree in (step, *after.values()):
        assert {n: x.shape for n, x in tree.items()} == {n: x.shape for n, x in delta.items()}
        assert all(x.dtype == torch.float32 for x in tree.values())


@every_algorithm
def test_inputs_are_not_changed_and_results_share_no_storage_with_them(name):
    optimizer, state = after_rounds(name, 2)
    delta = random_delta(7)
    step, after = optimizer.update(delta, state)
    for tree in (step, *after.values()):
        for x in tree.values():
            x.fill_(nan)
    assert_same(delta, random_delta(7))
    assert_same(flat(state), flat(after_rounds(name, 2)[1]))


@every_algorithm
def test_the_same_input_gives_the_same_bits(name):
    optimizer, state = after_rounds(name, 2)
    once, twice = (optimizer.update(random_delta(7), state) for _ in range(2))
    assert_same(once[0], twice[0])
    assert_same(flat(once[1]), flat(twice[1]))


@every_algorithm
def test_state_that_went_through_a_safetensors_file_goes_on_with_the_same_bits(name):
    optimizer, state = after_rounds(name, 3)
    restored = {slot: load(save(tensors)) for slot, tensors in state.items()}
    went_on, resumed = (optimizer.update(random_delta(7), m) for m in (state, restored))
    assert_same(went_on[0], resumed[0])
    assert_same(flat(went_on[1]), flat(resumed[1]))


@every_algorithm
def test_turning_every_update_round_turns_every_step_round(name):
    optimizer = server_optimizer(name)
    forth, back = (optimizer.init(random_delta(0)) for _ in range(2))
    for seed in range(4):
        delta = random_delta(seed)
        step, forth = optimizer.update(delta, forth)
        opposite, back = optimizer.update(scale(delta, -1.0), back)
        assert_same(opposite, scale(step, -1.0))


@every_algorithm
def test_an_element_moves_the_same_whatever_stands_beside_it(name):
    optimizer, state = after_rounds(name, 2)
    delta = random_delta(7)
    together, _ = optimizer.update(delta, state)
    for key in delta:
        only = {slot: {key: tensors[key]} for slot, tensors in state.items()}
        alone, _ = optimizer.update({key: delta[key]}, only)
        assert_same(alone, {key: together[key]})


@with_lr
def test_the_step_is_proportional_to_the_server_learning_rate_and_state_does_not_know_it(name):
    state = after_rounds(name, 2)[1]
    step, after = server_optimizer(name, lr=0.25).update(random_delta(7), state)
    larger, same = server_optimizer(name, lr=0.5).update(random_delta(7), state)
    assert_same(larger, scale(step, 2.0))
    assert_same(flat(after), flat(same))


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold", "fedavgm"])
def test_rules_without_a_second_moment_are_linear_in_the_updates(name):
    optimizer = server_optimizer(name)
    small, large = (optimizer.init(random_delta(0)) for _ in range(2))
    for seed in range(3):
        step, small = optimizer.update(random_delta(seed), small)
        larger, large = optimizer.update(random_delta(seed, size=8.0), large)
        assert_same(larger, scale(step, 8.0))


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_adaptive_rules_stay_finite_and_keep_v_from_going_negative(name):
    optimizer = server_optimizer(name)
    state = optimizer.init(random_delta(0))
    for seed in range(60):  # sizes from 1e-12 to 1e6, up and down again
        step, state = optimizer.update(random_delta(seed, size=10.0 ** (seed * 7 % 19 - 12)), state)
        assert all(x.isfinite().all() for x in step.values())
        assert all((x >= 0).all() for x in state["v"].values())


@pytest.mark.parametrize("name", [n for n in NAMES if PAPER[n][0]])
@pytest.mark.parametrize("shape", [(1, 3), (3, 3)])
def test_state_of_other_shapes_or_names_is_refused_and_never_broadcast(name, shape):
    optimizer = server_optimizer(name)
    with pytest.raises(ValueError, match=r"optimizer state .* shape"):
        optimizer.update({"a": torch.ones(2, 3)}, optimizer.init({"a": torch.ones(shape)}))
    with pytest.raises(ValueError, match=r"optimizer state .* lacks 'a'"):
        optimizer.update({"a": torch.ones(2, 3)}, optimizer.init({"b": torch.ones(2, 3)}))


# Two rounds by hand. All numbers are powers of two or small integers, so they are exact in fp32
# up to the last division.
TWO_ROUNDS = {
    # The step is the update.
    "fedavg": (
        {},
        [([4, -4, 0], [4, -4, 0], {}), ([2, 2, 2], [2, 2, 2], {})],
    ),
    # lr 1/2, beta 1/4.
    # Round 1: m = 0/4 + D = (4, -4, 0); step m/2 = (2, -2, 0).
    # Round 2: m = (1, -1, 0) + (2, 2, 2) = (3, 1, 2); step (1.5, 0.5, 1).
    "fedavgm": (
        {"lr": 0.5, "beta": 0.25},
        [
            ([4, -4, 0], [2, -2, 0], {"m": [4, -4, 0]}),
            ([2, 2, 2], [1.5, 0.5, 1], {"m": [3, 1, 2]}),
        ],
    ),
    # lr 2, tau 1.
    # Round 1: v = D^2 = (16, 9, 0); step 2 (4/(4+1), -3/(3+1), 0/(0+1)) = (1.6, -1.5, 0).
    # Round 2: v = (16+9, 9+16, 0+4) = (25, 25, 4); step 2 (3/6, 4/6, 2/3) = (1, 4/3, 4/3).
    "fedadagrad": (
        {"lr": 2.0, "tau": 1.0},
        [
            ([4, -3, 0], [1.6, -1.5, 0], {"v": [16, 9, 0]}),
            ([3, 4, 2], [1, 4 / 3, 4 / 3], {"v": [25, 25, 4]}),
        ],
    ),
    # lr 2, b1 1/2, b2 3/4, tau 1.
    # Round 1: m = D/2 = (2, -2, 0); v = D^2/4 = (4, 4, 0); step 2 (2/3, -2/3, 0).
    # Round 2: m = (1, -1, 0) + (1, 1, 1) = (2, 0, 1); v = (3, 3, 0) + (1, 1, 1) = (4, 4, 1);
    #          step 2 (2/3, 0, 1/2) = (4/3, 0, 1).
    "fedadam": (
        {"lr": 2.0, "b1": 0.5, "b2": 0.75, "tau": 1.0},
        [
            ([4, -4, 0], [4 / 3, -4 / 3, 0], {"m": [2, -2, 0], "v": [4, 4, 0]}),
            ([2, 2, 2], [4 / 3, 0, 1], {"m": [2, 0, 1], "v": [4, 4, 1]}),
        ],
    ),
    # lr 2, b1 1/2, b2 3/4, tau 1.
    # Round 1: v = 0 < D^2, so v = 0 + D^2/4 = (4, 4, 4, 0); m = D/2 = (2, -2, 2, 0);
    #          step 2 (2/3, -2/3, 2/3, 0).
    # Round 2: D^2 = (4, 16, 1, 0) against v = (4, 4, 4, 0): equal, above, below, equal (zeros).
    #          v = (4, 4 + 16/4, 4 - 1/4, 0) = (4, 8, 3.75, 0);
    #          m = (1, -1, 1, 0) + (1, 2, 0.5, 0) = (2, 1, 1.5, 0);
    #          step 2 (2/3, 1/(sqrt 8 + 1), 1.5/(sqrt 3.75 + 1), 0).
    "fedyogi": (
        {"lr": 2.0, "b1": 0.5, "b2": 0.75, "tau": 1.0},
        [
            (
                [4, -4, 4, 0],
                [4 / 3, -4 / 3, 4 / 3, 0],
                {"m": [2, -2, 2, 0], "v": [4, 4, 4, 0]},
            ),
            (
                [2, 4, 1, 0],
                [4 / 3, 2 / (sqrt(8) + 1), 3 / (sqrt(3.75) + 1), 0],
                {"m": [2, 1, 1.5, 0], "v": [4, 8, 3.75, 0]},
            ),
        ],
    ),
}
TWO_ROUNDS["fedprox"] = TWO_ROUNDS["scaffold"] = TWO_ROUNDS["fedavg"]


@every_algorithm
def test_two_rounds_give_the_numbers_worked_by_hand(name):
    hyper, rounds = TWO_ROUNDS[name]
    optimizer = server_optimizer(name, **hyper)
    state = optimizer.init({"x": torch.zeros(len(rounds[0][0]))})
    for delta, expected_step, expected_memory in rounds:
        step, state = optimizer.update({"x": torch.tensor(delta, dtype=torch.float32)}, state)
        assert step["x"].tolist() == pytest.approx(expected_step, rel=1e-7)
        assert {slot: tensors["x"].tolist() for slot, tensors in state.items()} == expected_memory


def test_an_unknown_algorithm_is_told_the_choices_and_the_nearest_one():
    with pytest.raises(UserError, match=r"algorithm\.name.*fedavgm.*did you mean 'fedyogi'"):
        server_optimizer("fedyogy")


@every_algorithm
def test_a_hyperparameter_that_an_optimizer_does_not_have_is_told_its_own(name):
    own = ", ".join(PAPER[name][1]) or "none"
    for foreign in {"lr", "beta", "b1", "b2", "tau", "mu", "eta"} - set(PAPER[name][1]):
        with pytest.raises(UserError, match=rf"^algorithm\.{foreign}: .*\(it has: {own}\)"):
            server_optimizer(name, **{foreign: 0.5})


def test_an_optimizer_is_frozen_and_carries_no_state_of_its_own():
    optimizer = server_optimizer("fedadam")
    first, _ = optimizer.update(random_delta(1), optimizer.init(random_delta(1)))
    optimizer.update(random_delta(2), optimizer.init(random_delta(2)))
    again, _ = optimizer.update(random_delta(1), optimizer.init(random_delta(1)))
    assert_same(first, again)
    with pytest.raises(dataclasses.FrozenInstanceError):
        optimizer.init = None
