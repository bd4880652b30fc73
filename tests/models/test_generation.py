import random
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from tiny import SIZES, VOCABULARY, branched, tiny_llama

from fedsdr.models import row_cache
from fedsdr.models.generation import choose_tokens, transformers_generate
from fedsdr.types import Decoding, GenerationRequest, Turn


class Numbers:
    """A tokenizer whose text is the token ids themselves."""

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(map(str, ids))


def requests(count=9, seed=0):
    rng = random.Random(seed)
    made = []
    for i in range(count):
        ids = [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(2, 30))]
        made.append(GenerationRequest(f"r{i}", (Turn("user", " ".join(map(str, ids))),), seed=i))
    return made


def render(turns):
    return [int(t) for t in turns[0].content.split()]


def run(model, asked, decoding, batch_size, stops=(2,)):
    generate = transformers_generate(model, Numbers(), render, stops, batch_size)
    answers = list(generate(asked, decoding))
    assert sorted(a.id for a in answers) == sorted(r.id for r in asked)
    return {a.id: a for a in answers}


GREEDY = Decoding(temperature=0.0, max_new_tokens=12)
SAMPLED = Decoding(temperature=1.0, top_p=0.95, max_new_tokens=12)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_greedy_text_equals_that_of_transformers_generate(batch_size):
    ours, theirs = tiny_llama(), tiny_llama(packed=False)
    stops = list(range(40, 60))  # many stop tokens, so that rows end at different steps
    got = run(ours, requests(), GREEDY, batch_size, stops)
    ended = 0
    for request in requests():
        prompt = torch.tensor([render(request.turns)])
        out = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()
        answer = got[request.id]
        ended += out[-1] in stops
        assert answer.finished == (out[-1] in stops)
        assert answer.new_tokens == len(out)
        assert answer.text == " ".join(str(t) for t in out if t not in stops)
    assert 0 < ended < len(requests())


def test_prompts_that_begin_alike_give_the_text_that_each_gives_alone():
    model = tiny_llama()
    system = " ".join(str(3 + i % 50) for i in range(70))
    asked = [
        replace(r, turns=(Turn("user", f"{system} {r.turns[0].content}"),)) for r in requests()
    ]
    asked.append(GenerationRequest("the start alone", (Turn("user", system),), seed=99))
    for decoding in (GREEDY, SAMPLED):
        together = run(model, asked, decoding, 4)
        for request in asked:
            alone = run(model, [request], decoding, 1)[request.id]
            assert together[request.id] == alone


def test_what_all_prompts_begin_with_is_computed_once(monkeypatch):
    model, seen = tiny_llama(), []
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda **given: (seen.append(given["input_ids"].numel()), forward(**given))[1],
    )
    asked = [GenerationRequest(f"r{i}", (Turn("user", f"5 6 7 8 9 {i + 20}"),)) for i in range(6)]
    run(model, asked, Decoding(temperature=0.0, max_new_tokens=1), 6)
    assert seen == [5, 6]


def test_lengths_far_apart_give_the_same_text_in_products_of_their_own(monkeypatch):
    model = tiny_llama()
    asked = [
        GenerationRequest(f"r{n}", (Turn("user", " ".join(["7", *["9"] * n, "11"])),), seed=n)
        for n in (1, 3, 60, 64, 200)
    ]
    expected = run(model, asked, SAMPLED, 5)
    monkeypatch.setattr(row_cache, "PADDING", 10)
    assert run(model, asked, SAMPLED, 5) == expected
    monkeypatch.setattr(row_cache, "PADDING", 10_000)
    assert run(model, asked, SAMPLED, 5) == expected


def test_a_row_draws_the_same_token_whatever_the_rows_beside_it_need():
    flat, peaked = torch.zeros(1, 2000), torch.full((1, 2000), -9.0)
    peaked[0, 7:9] = 3.0
    decoding = Decoding(temperature=1.0, top_p=0.9)
    for u in (0.1, 0.499, 0.501, 0.97):
        both = choose_tokens(torch.cat([flat, peaked]), [u, u], decoding)
        assert both == [*choose_tokens(flat, [u], decoding), *choose_tokens(peaked, [u], decoding)]
        assert both[1] in (7, 8)


def test_the_same_seed_gives_the_same_text_in_any_batch_and_order():
    model = tiny_llama()
    asked = requests(12)
    expected = {i: a.text for i, a in run(model, asked, SAMPLED, 32).items()}
    for batch_size in (1, 3, 5):
        shuffled = random.Random(batch_size).sample(asked, len(asked))
        assert {i: a.text for i, a in run(model, shuffled, SAMPLED, batch_size).items()} == expected
    other = [GenerationRequest(r.id, r.turns, r.seed + 100) for r in asked]
    assert {i: a.text for i, a in run(model, other, SAMPLED, 32).items()} != expected


def test_models_that_cannot_share_a_forward_give_the_same_text():
    asked = requests(5)
    fast, plain = tiny_llama(), tiny_llama(packed=False)
    for decoding in (GREEDY, SAMPLED):
        one = {i: a.text for i, a in run(fast, asked, decoding, 4).items()}
        assert {i: a.text for i, a in run(plain, asked, decoding, 4).items()} == one


def test_generation_uses_the_branches_in_the_forward():
    ours = branched(tiny_llama())
    base = run(ours.model, requests(), GREEDY, 4)
    with ours.using("R", "S"):
        adapted = run(ours.model, requests(), GREEDY, 4)
    assert {i: a.text for i, a in base.items()} != {i: a.text for i, a in adapted.items()}


def test_a_window_of_attention_is_kept_while_generating():
    from transformers import MistralConfig, MistralForCausalLM

    from fedsdr.models.fast_path import prepare

    config = MistralConfig(
        **SIZES,
        sliding_window=6,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    plain = {i: a.text for i, a in run(model, requests(4), GREEDY, 4).items()}
    assert prepare(model) == ()
    assert {i: a.text for i, a in run(model, requests(4), GREEDY, 4).items()} == plain


def test_tokens_are_drawn_with_the_probabilities_of_temperature_top_k_and_top_p():
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    uniforms = ((torch.arange(4000) + 0.5) / 4000).tolist()
    many = logits.expand(4000, -1)

    def shares(**decoding):
        picks = choose_tokens(many, uniforms, Decoding(**decoding))
        return torch.bincount(torch.tensor(picks), minlength=4).double()

    full = shares(temperature=1.0, top_p=1.0)
    assert chisquare(full, [1600, 1200, 800, 400]).pvalue > 0.5
    # Temperature 0.5 squares the probabilities: 16, 9, 4 and 1 thirtieths.
    cold = shares(temperature=0.5, top_p=1.0)
    assert chisquare(cold, [n * 4000 / 30 for n in (16, 9, 4, 1)]).pvalue > 0.5
    # The smallest set that reaches 0.6 is the first two: 4/7 and 3/7.
    assert shares(temperature=1.0, top_p=0.6).tolist() == pytest.approx([2286, 1714, 0, 0], abs=2)
    assert shares(temperature=1.0, top_p=1.0, top_k=1).tolist() == [4000, 0, 0, 0]


def test_no_request_gives_no_answer():
    assert run(tiny_llama(), [], GREEDY, 4) == {}


@pytest.mark.parametrize("packed", [True, False])
def test_until_ends_a_text_before_the_first_of_its_strings_and_strips_nothing(packed):
    model = tiny_llama(packed=packed)
    whole = run(model, requests(), GREEDY, 4, stops=())
    # Numbers with spaces around, so that a string does not also end a longer number.
    stop = [f" {ids[len(ids) // 2]} " for a in whole.values() if (ids := a.text.split())][:3]
    generate = transformers_generate(model, Numbers(), render, (), 4, stop)
    shorter = 0
    for answer in generate(requests(), GREEDY):
        text = f" {whole[answer.id].text}"  # as it stands behind its prompt
        expected = text[: min((text.find(s) for s in stop if s in text), default=len(text))]
        # A stop at the very end is seen only when the space behind it has come.
        assert answer.text == expected
        assert answer.finished == (expected != text)
        assert answer.new_tokens <= whole[answer.id].new_tokens
        shorter += answer.new_tokens < whole[answer.id].new_tokens
    assert shorter
    (plain,) = transformers_generate(model, Numbers(), render, (), 4, [])(requests(1), GREEDY)
    assert plain.text == f" {whole[plain.id].text}"


def test_a_cache_that_grows_gives_the_same_answers(monkeypatch):
    model, whole = tiny_llama(), {}
    for start in (4096, 2):
        monkeypatch.setattr(row_cache, "START", start)
        whole[start] = run(model, requests(), SAMPLED, batch_size=4)
    assert whole[2] == whole[4096]


def test_a_billion_new_tokens_take_memory_only_as_they_are_made():
    decoding = Decoding(max_new_tokens=10**9)
    answers = run(tiny_llama(), requests(), decoding, batch_size=4, stops=range(VOCABULARY))
    assert {answer.new_tokens for answer in answers.values()} == {1}
