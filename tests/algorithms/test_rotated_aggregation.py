import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.stats import special_ortho_group

from fedsdr.algorithms.aggregation import AGGREGATIONS, RoundContext
from fedsdr.algorithms.rotated_aggregation import softened_rotation

A, B = "R/q.lora_A", "R/q.lora_B"


def factors(seed, size_out=10, rank=4, size_in=12):
    generator = torch.Generator().manual_seed(seed)
    return {
        A: torch.randn(rank, size_in, generator=generator, dtype=torch.float64),
        B: torch.randn(size_out, rank, generator=generator, dtype=torch.float64),
    }


SHARED = factors(0)


def rotated_alone(own, round):
    """The factors that a client counts with, when it is the only one."""
    change = {name: own[name] - SHARED[name] for name in own}
    combine = AGGREGATIONS["rotated"].combine
    found = combine(iter([(change, 5.0)]), RoundContext(round, 1, SHARED))
    return {name: SHARED[name] + found.pseudo_gradient[name] for name in own}


@pytest.mark.parametrize("round", [1, 2])
def test_the_whole_rotation_is_scipys_procrustes(round):
    own = factors(7)
    x, y = (own[A].T, SHARED[A].T) if round == 1 else (own[B], SHARED[B])
    expected, _ = orthogonal_procrustes(x.numpy(), y.numpy())
    if np.linalg.det(expected) < 0:
        pytest.skip("scipy's is a reflection")
    np.testing.assert_allclose(softened_rotation(x.T @ y, 1.0).numpy(), expected, atol=1e-12)


def test_a_reflection_is_never_taken():
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    for softness in (0.5, 1.0):
        q = softened_rotation(mirror, softness)
        assert torch.linalg.det(q).item() == pytest.approx(1)


def test_half_of_a_rotation_by_an_angle_is_one_by_half_the_angle():
    def turn(angle):
        c, s = np.cos(angle), np.sin(angle)
        return torch.tensor([[c, -s], [s, c]])

    torch.testing.assert_close(softened_rotation(turn(0.8)), turn(0.4))


@pytest.mark.parametrize("round", [1, 2])
def test_a_clients_product_is_left_as_it_is(round):
    own = factors(7)
    turned = rotated_alone(own, round)
    assert not torch.allclose(turned[A], own[A], atol=1e-2)
    torch.testing.assert_close(turned[B] @ turned[A], own[B] @ own[A], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("round", "aligned"), [(1, A), (2, B)])
def test_odd_rounds_align_a_and_even_rounds_align_b(round, aligned):
    q = torch.from_numpy(special_ortho_group.rvs(4, random_state=1))
    own = {A: q.T @ SHARED[A], B: SHARED[B] @ q}
    # Both factors are turned by the same Q, so tell them apart by spoiling the other one.
    other = B if aligned == A else A
    own[other] = factors(9)[other]
    before = torch.dist(own[aligned], SHARED[aligned])
    assert torch.dist(rotated_alone(own, round)[aligned], SHARED[aligned]) < before / 1.5


def test_clients_that_hold_one_product_in_turned_factors_get_closer_to_its_mean():
    def mean_product(name, updates):
        found = AGGREGATIONS[name].combine(iter(updates), RoundContext(1, 2, SHARED))
        own = {n: SHARED[n] + found.pseudo_gradient[n] for n in SHARED}
        return own[B] @ own[A]

    updates = []
    for seed in (1, 2):
        small = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).double()
        q = torch.linalg.matrix_exp(0.2 * (small - small.T))
        own = {A: q.T @ SHARED[A], B: SHARED[B] @ q}
        updates.append(({n: own[n] - SHARED[n] for n in own}, 1.0))
    exact = SHARED[B] @ SHARED[A]
    error = {n: torch.dist(mean_product(n, updates), exact) for n in ("mean", "rotated")}
    assert error["rotated"] < error["mean"] / 2
