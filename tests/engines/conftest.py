import json

import pytest
from tiny import tiny_llama
from tiny_tokenizers import tiny_tokenizer

from fedsdr.config import load_config

WORDS = {
    "bank": "the loan has a rate of {} percent a year",
    "clinic": "the patient takes {} tablets a day",
    "school": "the sum of the numbers is {} in all",
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model folder as transformers writes it: a tiny Llama and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tiny_llama(packed=False, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    for name, words in WORDS.items():
        rows = [
            {"instruction": f"{name} question {i}", "input": "", "output": words.format(i)}
            for i in range(10)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture
def write_config(tmp_path, model_folder, data_folder, monkeypatch):
    """Return a function that writes a small, quick configuration and loads it."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))

    def write(*overrides: str):
        path = tmp_path / "config.toml"
        path.write_text(f"""
            [model]
            name = "{model_folder}"
            [data]
            clients = "{data_folder}"
            max_length = 128
            [federation]
            rounds = 3
            [train]
            local_epochs = 1
            batch_size = 4
            lr = 1e-2
            [lora]
            rank = 2
            alpha = 4
            [teacher]
            engine = "transformers"
            max_new_tokens = 6
            filter = "none"
            [evaluation]
            max_new_tokens = 4
        """)
        return load_config(path, overrides)

    return write
