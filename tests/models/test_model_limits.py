"""What a model cannot hold: tokens beyond its embedding, positions beyond its window, characters
that its tokenizer does not know. Run, distill and data agree, and nothing is written."""

import json
import re

import pytest
import torch
from tiny import tiny_llama
from tiny_tokenizers import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fedsdr.models.model_limits import limits_of


@pytest.fixture
def commands(write_config, fedsdr, tmp_path):
    """Return a function that runs `data`, `distill` and `run` with a model folder and rows, and
    returns what each printed and its exit code; a refusal must leave no folder."""

    def run(folder, rows, *settings, names=("data", "distill", "run")):
        write_config()
        clients = tmp_path / "rows"
        clients.mkdir(exist_ok=True)
        (clients / "bank.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = [
            f"model.name={folder}",
            f"data.clients={clients}",
            "federation.rounds=1",
            *settings,
        ]
        results = []
        for command in names:
            out = tmp_path / command
            to = [] if command == "data" else ["--out", out]
            sets = [part for setting in given for part in ("--set", setting)]
            code, printed, error = fedsdr(command, tmp_path / "config.toml", *to, *sets)
            assert "Traceback" not in error
            assert code == 0 or not out.exists()
            results.append((code, " ".join((printed + error).split())))
        return results

    return run


def rows(count=6, text="a {}"):
    return [
        {"id": f"r{i}", "instruction": f"q {i}", "output": text.format(i)} for i in range(count)
    ]


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_token_beyond_the_embedding_is_refused_with_client_row_and_token(commands, tmp_path):
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["zebra"])  # gets the id `size`
    folder = save(tmp_path / "model", tiny_llama(packed=False, vocab_size=size), tokenizer)
    assert commands(folder, rows(), names=["data"])[0][0] == 0  # no row has it
    given = rows()
    given[3]["output"] = "a zebra"
    for code, text in commands(folder, given, "data.test_fraction=0"):
        assert code == 2
        assert re.search(f"client 'bank'[,:] row 'r3': token {size} is not in", text)
        assert f"{size} rows" in text


def test_an_end_of_turn_beyond_the_embedding_is_refused(commands, tmp_path):
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    folder = save(tmp_path / "model", tiny_llama(packed=False, vocab_size=size), tokenizer)
    for code, text in commands(folder, rows()):
        assert code == 2
        assert f"token {size} is not in the model's embedding" in text


@pytest.mark.parametrize(
    ("kind", "sizes", "fixed"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 100}, True),
        (
            "gptj",
            {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 100, "rotary_dim": 4},
            True,
        ),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 32, "num_attention_heads": 4}, True),
        ("mistral", {"intermediate_size": 32, "num_attention_heads": 4}, False),
        ("bloom", {"n_head": 4}, None),
    ],
)
def test_positions_are_those_of_the_configuration_and_fixed_where_a_table_holds_them(
    kind, sizes, fixed
):
    common = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1}
    positions = {} if kind == "bloom" else {"max_position_embeddings": 100}
    config = AutoConfig.for_model(kind, **(common | positions | sizes))
    with torch.device("meta"):
        limits = limits_of(AutoModelForCausalLM.from_config(config), tiny_tokenizer())
    assert limits.vocabulary == 400
    assert (limits.positions, limits.fixed) == ((None, False) if fixed is None else (100, fixed))


def test_rows_longer_than_a_table_of_positions_are_refused(commands, tmp_path):
    config = AutoConfig.for_model(
        "gpt2", n_embd=8, n_layer=1, n_head=2, n_positions=64, vocab_size=len(tiny_tokenizer())
    )
    folder = save(tmp_path / "m", AutoModelForCausalLM.from_config(config), tiny_tokenizer())
    targets = 'lora.target_modules=["c_attn"]'
    for code, text in commands(folder, rows(), "data.max_length=60", targets):
        assert code == 2
        assert "data.max_length = 60 and teacher.max_new_tokens = 6 make 66 tokens" in text
        assert "64 positions; lower" in text


def test_rows_longer_than_a_rotary_window_are_announced_in_one_line(commands, tmp_path):
    model = tiny_llama(packed=False, vocab_size=len(tiny_tokenizer()), max_position_embeddings=64)
    folder = save(tmp_path / "model", model, tiny_tokenizer())
    for code, text in commands(folder, rows(), "data.max_length=60"):
        assert code == 0
        assert "make 66 tokens, but the model has 64 positions: it was not trained" in text


def test_characters_that_the_tokenizer_does_not_know_are_counted(commands, tmp_path):
    words = ["<unk>", "</s>", "q", "a", "0", "1", "2", "3", "4", "5", ":", "###"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m['content'] + ' </s> ' }}{% endfor %}"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", chat_template=template
    )
    model = tiny_llama(packed=False, vocab_size=len(words))
    folder = save(tmp_path / "model", model, fast)
    given = rows()
    given[0]["output"], given[1]["output"] = "ж и a", "日本"  # two unknown words, and one
    for code, text in commands(folder, given, "data.test_fraction=0"):
        assert code == 0
        assert "client 'bank': 3 tokens in 2 of 6 rows are the tokenizer's unknown token" in text
