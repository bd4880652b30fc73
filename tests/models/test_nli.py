import pytest
import torch
from tiny_tokenizers import tiny_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from fedsdr.errors import UserError
from fedsdr.models.nli import RELATIONS, load_nli

PAIRS = [("the cat sleeps", "a cat"), ("no cat sleeps on this long mat", "the cat"), ("a", "b")]


@pytest.fixture
def save_model(tmp_path):
    def save(labels):
        tokenizer = tiny_tokenizer()
        tokenizer.model_max_length = 64
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=64, initializer_range=1.0,
            id2label=dict(enumerate(labels)), label2id={x: i for i, x in enumerate(labels)},
        )  # fmt: skip
        model = BertForSequenceClassification(config).eval()
        model.save_pretrained(tmp_path / "nli")
        tokenizer.save_pretrained(tmp_path / "nli")
        return model, tokenizer

    return save


def test_the_relation_is_the_label_with_the_largest_logit(save_model, tmp_path):
    model, tokenizer = save_model(["CONTRADICTION", "neutral", "Entail"])
    found = load_nli(str(tmp_path / "nli"), torch.device("cpu"), batch_size=2)(PAIRS)
    names = {"CONTRADICTION": "contradiction", "neutral": "neutral", "Entail": "entailment"}
    for (premise, hypothesis), relation in zip(PAIRS, found, strict=True):
        inputs = tokenizer(premise, hypothesis, return_tensors="pt")
        best = int(model(**inputs).logits.argmax())
        assert relation == names[model.config.id2label[best]]
    assert set(found) <= set(RELATIONS)


def test_a_pair_longer_than_the_model_reads_is_cut(save_model, tmp_path):
    save_model(["entailment", "neutral", "contradiction"])
    infer = load_nli(str(tmp_path / "nli"), torch.device("cpu"))
    assert infer([("word " * 300, "word")])[0] in RELATIONS
    assert infer([]) == []


@pytest.mark.parametrize(
    "labels", [["LABEL_0", "LABEL_1", "LABEL_2"], ["entailment", "not_entailment"]]
)
def test_a_model_with_other_labels_is_refused(labels, save_model, tmp_path):
    save_model(labels)
    with pytest.raises(UserError, match=r"--nli: .* has the labels .*entailment, neutral"):
        load_nli(str(tmp_path / "nli"), torch.device("cpu"))


def test_a_model_that_does_not_exist_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--nli: .*nowhere' cannot be loaded"):
        load_nli(str(tmp_path / "nowhere"), torch.device("cpu"))
