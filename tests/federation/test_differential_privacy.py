import math
from dataclasses import replace

import pytest
import torch
from dp_accounting.dp_event import GaussianDpEvent, SampledWithoutReplacementDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from scipy.stats import norm as normal

from fedsdr.algorithms import server_optimizer
from fedsdr.algorithms.aggregation import AGGREGATIONS, Aggregation
from fedsdr.algorithms.combining import noisy_mean
from fedsdr.algorithms.gaussian_mechanism import add_gaussian, clip
from fedsdr.federation.checkpoint import load_state, save_state
from fedsdr.federation.privacy_accounting import Privacy, epsilon_spent
from fedsdr.federation.round import Plan, first_state, run_round
from fedsdr.tensors import norm
from fedsdr.types import ClientUpdate, LocalSettings

SHARED = {"R/a.lora_A": torch.zeros(200, 100), "R/a.lora_B": torch.zeros(100)}
CENTRAL = Privacy("central", clip_norm=2.0, noise_multiplier=0.5)


def plan_for(privacy, clients=("a", "b", "c", "d"), count=0):
    plan = Plan(0, clients, count, 1, server_optimizer("fedavg"), LocalSettings())
    noisy = Aggregation(noisy_mean(privacy.clip_norm, privacy.noise_multiplier))
    aggregation = noisy if privacy.mode == "central" else AGGREGATIONS["mean"]
    return replace(plan, privacy=privacy, aggregation=aggregation)


def test_central_privacy_without_its_noise_is_an_error():
    with pytest.raises(ValueError, match="noisy_mean"):
        replace(plan_for(CENTRAL), aggregation=AGGREGATIONS["mean"])


def constant_updates(values, num_examples):
    """An engine whose clients send one value everywhere, of norm |value| sqrt(20,100)."""

    def run(tasks):
        for task in tasks:
            value = values[task.client_id] / math.sqrt(20_100)
            delta = {name: torch.full_like(x, value) for name, x in task.shared.items()}
            yield ClientUpdate(task.client_id, 1, num_examples[task.client_id], delta, {})

    return run


def test_clipping_scales_all_tensors_together_and_leaves_what_is_within_the_bound():
    values = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}  # norm 5
    clipped = clip(values, 1.0)
    torch.testing.assert_close(clipped["a"], torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(clipped["b"], torch.tensor([[0.8]]))
    assert all(torch.equal(clip(values, 5.0)[name], value) for name, value in values.items())


def test_noise_has_the_standard_deviation_that_is_asked_for_and_never_repeats():
    torch.manual_seed(0)
    first = add_gaussian(SHARED, 3.0)["R/a.lora_A"]
    torch.manual_seed(0)
    again = add_gaussian(SHARED, 3.0)["R/a.lora_A"]
    assert not torch.equal(first, again)  # no seed of ours chooses it
    # 20,000 draws: the standard deviation is within 5 of its own standard errors, 3 / sqrt(40,000)
    assert float(first.std()) == pytest.approx(3.0, abs=5 * 3 / 200)
    assert abs(float(first.mean())) < 5 * 3 / math.sqrt(20_000)


def test_with_privacy_every_client_counts_once_whatever_its_rows():
    values, rows = {"a": 2.0, "b": 1.0, "c": 1.0, "d": 0.0}, {"a": 1000, "b": 1, "c": 1, "d": 1}
    plan = plan_for(replace(CENTRAL, noise_multiplier=1e-3))
    after, _ = run_round(first_state(SHARED, plan), plan, constant_updates(values, rows))
    # (2 + 1 + 1 + 0) / 4 = 1, and noise of 1e-3 * 2 / 4 a value
    assert float(after.shared["R/a.lora_A"].mean()) * math.sqrt(20_100) == pytest.approx(
        1, abs=0.01
    )


def test_the_server_adds_noise_for_the_sum_divided_by_those_that_were_asked():
    values, rows = dict.fromkeys("abcd", 0.0), dict.fromkeys("abcd", 5)
    plan = plan_for(CENTRAL)
    after, _ = run_round(first_state(SHARED, plan), plan, constant_updates(values, rows))
    assert float(after.shared["R/a.lora_A"].std()) == pytest.approx(0.5 * 2.0 / 4, rel=0.03)


def test_an_update_that_its_client_did_not_clip_is_refused_since_no_noise_was_made_for_it():
    values, rows = {"a": 2.0, "b": 2.1, "c": 1.0, "d": 0.0}, dict.fromkeys("abcd", 5)
    plan = plan_for(CENTRAL)
    _, record = run_round(first_state(SHARED, plan), plan, constant_updates(values, rows))
    assert [(r["id"], r["reason"]) for r in record.refused] == [
        ("b", "update has norm 2.1, above privacy.clip_norm 2")
    ]


def test_a_client_that_is_left_out_does_not_make_the_others_weigh_more():
    values, rows = {"a": 1.0, "b": 9.0, "c": 1.0, "d": 2.0}, dict.fromkeys("abcd", 5)
    plan = plan_for(replace(CENTRAL, noise_multiplier=1e-3))
    after, record = run_round(first_state(SHARED, plan), plan, constant_updates(values, rows))
    assert [r["id"] for r in record.refused] == ["b"]
    # (1 + 1 + 2) / 4 = 1: the divisor must not tell who was refused
    assert float(after.shared["R/a.lora_A"].mean()) * math.sqrt(20_100) == pytest.approx(
        1, abs=0.01
    )


def test_who_takes_part_cannot_be_worked_out_from_the_seed():
    clients = tuple(f"{i:03d}" for i in range(200))
    plan = plan_for(CENTRAL, clients, count=20)
    values, rows = dict.fromkeys(clients, 0.0), dict.fromkeys(clients, 5)
    state = first_state(SHARED, plan)
    taken = [
        run_round(state, plan, constant_updates(values, rows))[0].accepted.keys() for _ in "ab"
    ]
    assert taken[0] != taken[1]


@pytest.mark.parametrize(("clients", "chosen"), [(5, 5), (100, 10)])
def test_the_epsilon_of_a_record_is_the_accountants_own_answer(clients, chosen):
    names = tuple(f"{i:03d}" for i in range(clients))
    plan = plan_for(CENTRAL, names, count=chosen)
    state, records = first_state(SHARED, plan), []
    engine = constant_updates(dict.fromkeys(names, 0.0), dict.fromkeys(names, 5))

    def run(tasks):
        return [replace(update, round=tasks[0].round) for update in engine(tasks)]

    for _ in range(3):
        state, record = run_round(state, plan, run)
        records.append(record.epsilon)
    event = GaussianDpEvent(0.25)  # the noise in distances of neighbours: z C / 2 C
    if clients != chosen:
        event = SampledWithoutReplacementDpEvent(clients, chosen, event)
    accountant, wanted = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE), []
    for _ in range(3):
        accountant.compose(event)
        wanted.append(accountant.get_epsilon(1e-5))
    assert records == pytest.approx(wanted)


def test_epsilon_is_a_little_over_that_of_the_gaussian_mechanism_on_sums_two_bounds_apart():
    # T rounds of noise z C on sums 2 C apart are one Gaussian mechanism with mu = 2 sqrt(T) / z:
    # delta(eps) = Phi(mu / 2 - eps / mu) - e^eps Phi(-mu / 2 - eps / mu)    (Balle and Wang, 2018)
    mu = 2 * math.sqrt(10) / 4

    def delta(epsilon):
        tail = math.exp(epsilon) * normal.cdf(-mu / 2 - epsilon / mu)
        return normal.cdf(mu / 2 - epsilon / mu) - tail

    told = epsilon_spent(Privacy("central", 1.0, 4.0, 1e-5), [(5, 5)] * 10)
    assert delta(told) <= 1e-5 < delta(told / 1.2)
    # A second accountant, which doubles the distance of such neighbours itself.
    exact = PLDAccountant(NeighboringRelation.REPLACE_ONE).compose(GaussianDpEvent(4.0), 10)
    assert exact.get_epsilon(1e-5) <= told < 1.2 * exact.get_epsilon(1e-5)


def test_leaving_clients_out_never_costs_more_than_taking_all():
    all_of_them, most, few = (
        epsilon_spent(Privacy("central", 1.0, 4.0), [(1000, chosen)] * 10)
        for chosen in (1000, 999, 10)
    )
    assert few < most == all_of_them


def test_local_noise_gains_nothing_from_who_was_drawn():
    local = epsilon_spent(Privacy("local", 1.0, 4.0), [(100, 10)] * 10)
    assert local == epsilon_spent(Privacy("central", 1.0, 4.0), [(5, 5)] * 10)
    assert epsilon_spent(Privacy("central", 1.0, 4.0), [(100, 10)] * 10) < local


def test_without_privacy_a_record_has_no_epsilon():
    plan = plan_for(Privacy())
    values, rows = dict.fromkeys("abcd", 7.0), dict.fromkeys("abcd", 5)
    _, record = run_round(first_state(SHARED, plan), plan, constant_updates(values, rows))
    assert record.epsilon is None
    assert norm(SHARED) == 0


def test_epsilon_counts_every_round_as_it_was_drawn_even_after_a_restart(tmp_path):
    # One of two clients, then one of five: more clients now make an earlier round no more private.
    values, rows = dict.fromkeys("abcde", 0.0), dict.fromkeys("abcde", 5)

    def run(tasks):
        updates = constant_updates(values, rows)(tasks)
        return [replace(update, round=tasks[0].round) for update in updates]

    plan = plan_for(CENTRAL, ("a", "b"), count=1)
    state, first = run_round(first_state(SHARED, plan), plan, run)
    save_state(tmp_path, state)
    state, second = run_round(load_state(tmp_path), replace(plan, clients=tuple("abcde")), run)
    assert first.epsilon == epsilon_spent(CENTRAL, [(2, 1)])
    unknown = replace(load_state(tmp_path), draws=())  # as an older version has left it
    assert run_round(unknown, plan, run)[1].epsilon == epsilon_spent(CENTRAL, [(2, 2), (2, 1)])
    assert second.epsilon == epsilon_spent(CENTRAL, [(2, 1), (5, 1)])
    assert second.epsilon > epsilon_spent(CENTRAL, [(5, 1), (5, 1)])
