from functools import partial

import pytest
import torch
from tiny import branched, rows, tiny_llama

from fedsdr.evaluation.retention import (
    PromptDrift,
    drifts_of,
    neutral_prompts,
    prompt_requests,
    retention_entry,
    seed_answers,
)
from fedsdr.types import Generation, TokenRow


def log_probabilities(model, row, branches):
    with model.using(*branches), torch.inference_mode():
        logits = model.model(torch.tensor([row.tokens])).logits[0].double()
    return logits.log_softmax(-1)


def test_drift_and_rise_are_those_of_the_full_distributions_in_fp64():
    model, given = branched(tiny_llama()), rows(5)
    plain = branched(tiny_llama(packed=False))  # one row at a time, as transformers does it
    found = drifts_of(model, given, partial(model.using, "R", "S"))
    for row, one in zip(given, found, strict=True):
        seed, own = (log_probabilities(plain, row, b) for b in ((), ("R", "S")))
        places = [t for t in range(1, len(row.tokens)) if row.supervised[t]]
        kl = sum(float((seed[t - 1].exp() * (seed[t - 1] - own[t - 1])).sum()) for t in places)
        rise = sum(float((seed - own)[t - 1, row.tokens[t]]) for t in places)
        assert kl > 0.01
        assert one.drift == pytest.approx(kl, rel=1e-3)
        assert one.rise == pytest.approx(rise, rel=1e-3, abs=1e-4)
        assert one.tokens == len(places)


def test_the_seed_model_has_no_drift():
    model = branched(tiny_llama())
    assert {(one.drift, one.rise) for one in drifts_of(model, rows(3), model.using)} == {(0, 0)}


def test_the_means_are_over_tokens_and_the_intervals_over_prompts():
    entry = retention_entry([PromptDrift(2.0, -1.0, 10), PromptDrift(6.0, 3.0, 30)], seed=0)
    assert entry["drift"]["value"] == pytest.approx(8 / 40)
    assert entry["drift"]["interval"] == pytest.approx([0.2, 0.2])  # 0.2 a token in both
    assert entry["rise"]["value"] == pytest.approx(2 / 40)
    assert entry["rise"]["interval"] == pytest.approx([-0.1, 0.1])


def test_the_prompts_are_short_distinct_and_many_enough():
    prompts = neutral_prompts()
    assert len(set(prompts)) == len(prompts) == 24
    assert all(20 < len(prompt) < 300 for prompt in prompts)


def test_a_cut_answer_has_no_end_and_one_of_nothing_at_all_is_left_out():
    answers = [
        Generation(request.id, "" if i < 2 else "ab", i not in (0, 2), 3, 2)
        for i, request in enumerate(prompt_requests())
    ]

    def encode(examples):  # two tokens of the prompt, one a letter, and the end of the turn
        return [
            TokenRow(
                e.id,
                tuple(range(3 + len(e.response))),
                (False, False, *[True] * (1 + len(e.response))),
            )
            for e in examples
        ]

    found = seed_answers(answers, encode)
    assert len(found) == 23
    (turns, empty), (_, cut), (_, whole) = found[:3]
    assert turns[0].content == neutral_prompts()[1]
    assert empty.supervised == (False, False, True)
    assert cut.supervised == (False, False, True, True, False)
    assert whole.supervised == (False, False, True, True, True)
