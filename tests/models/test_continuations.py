"""Likelihoods of continuations against transformers' own forward, one pair at a time."""

import random

import pytest
import torch
from tiny import VOCABULARY, branched, tiny_llama

from fedsdr.models import continuations
from fedsdr.models.continuations import score_continuations


def asked(seed=0):
    """Two subjects of long, common shots, letters after each question, and longer answers too."""
    rng = random.Random(seed)

    def tokens(count):
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(count))

    pairs = []
    for _ in range(2):
        shots = tokens(60)
        for _ in range(5):
            context = (*shots, *tokens(rng.randint(3, 20)))
            pairs += [(context, (letter,)) for letter in (10, 11, 12, 13)]
            pairs += [(context, tokens(rng.randint(2, 6))) for _ in range(2)]
    rng.shuffle(pairs)
    return pairs


def by_transformers(model, pairs):
    made = []
    for context, continuation in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *continuation]])).logits[0]
        said = logits[len(context) - 1 : -1].log_softmax(-1)
        wanted = torch.tensor(continuation)
        likelihood = said.gather(-1, wanted[:, None]).sum()
        made.append((float(likelihood), bool((said.argmax(-1) == wanted).all())))
    return made


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tokens", [16, 100, 4096])
def test_likelihoods_equal_those_of_transformers_whatever_the_pack(tokens, packed, monkeypatch):
    monkeypatch.setattr(continuations, "PACK_TOKENS", tokens)
    pairs = asked()
    # What greedy says must be asked too, or the flag would never be true.
    plain = tiny_llama(packed=False)
    with torch.no_grad():
        pairs += [
            (c, (int(plain(torch.tensor([c])).logits[0, -1].argmax()),)) for c, _ in pairs[:4]
        ]
    ours = score_continuations(tiny_llama(packed=packed), pairs)
    theirs = by_transformers(plain, pairs)
    assert [said for said, _ in ours] == pytest.approx([said for said, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert any(greedy for _, greedy in ours)


def test_the_branches_that_are_in_the_forward_count():
    pairs = asked()[:6]
    model = branched(tiny_llama())
    with model.using("R", "S"):
        both = score_continuations(model.model, pairs)
    assert both != score_continuations(model.model, pairs)
    merged = branched(tiny_llama()).merge("R", "S")
    expected = by_transformers_of(merged, pairs)
    assert [said for said, _ in both] == pytest.approx(expected, abs=1e-4)


def by_transformers_of(merged, pairs):
    merged.set_attn_implementation("sdpa")
    return [said for said, _ in by_transformers(merged, pairs)]


def test_the_shots_of_a_subject_are_computed_once():
    model, computed = tiny_llama(), []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    rng = random.Random(0)
    pairs = []
    for subject in range(3):
        shots = tuple(rng.randrange(3, VOCABULARY) for _ in range(200))
        for question in range(1 if subject == 0 else 4):  # one subject with a single question
            pairs += [((*shots, 5 + question, 20), (letter,)) for letter in (10, 11, 12, 13)]
    score_continuations(model, pairs)
    # 200 shots once a subject; of each question two tokens and the place of the letter
    assert sum(computed) == 3 * 200 + 9 * 3
    assert score_continuations(model, []) == []
