import random

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from fedsdr.report.pictures import draw_landscape
from fedsdr.research.diagnose.answer_map import landscape

OWN = {"bank": "loan rate credit interest debt", "clinic": "dose patient fever tablet blood"}
SHARED = "the answer here is what you need now"


def texts(words_of, count=40):
    rng = random.Random(0)
    return {
        client: [" ".join(rng.choices(words_of(client).split(), k=12)) for _ in range(count)]
        for client in OWN
    }


def separation(points):
    """scikit-learn's silhouette of the clients: near 1 apart, near 0 mixed."""
    xy = np.concatenate([np.array(of) for of in points.values()])
    labels = [client for client, of in points.items() for _ in of]
    return silhouette_score(xy, labels)


def test_clients_with_words_of_their_own_lie_apart_and_with_the_same_words_they_mix():
    found = landscape(texts(OWN.get), texts(lambda client: SHARED), seed=3)
    assert found.keys() == {"raw", "rewritten"}
    assert separation(found["raw"]) > 0.5
    assert abs(separation(found["rewritten"])) < 0.1


def test_the_same_seed_gives_the_same_points():
    raw, rewritten = texts(OWN.get, 10), texts(lambda client: SHARED, 10)
    assert landscape(raw, rewritten, 2**62) == landscape(raw, rewritten, 2**62)


@pytest.mark.parametrize(
    "raw",
    [
        {"a": ["yes"], "b": ["no"]},
        {"a": ["yes", "yes"], "b": ["yes", "yes"]},
        {"a": ["one two three"] * 40, "b": ["+"] * 40},
    ],
    ids=["an answer a client", "all answers equal", "answers without words"],
)
def test_few_or_equal_answers_have_points_too(raw):
    found = landscape(raw, raw, seed=0)
    assert {client: len(points) for client, points in found["raw"].items()} == {
        client: len(rows) for client, rows in raw.items()
    }
    assert np.isfinite([xy for of in found.values() for c in of.values() for xy in c]).all()


@pytest.mark.parametrize("clients", [2, 12, 30])
def test_every_client_has_a_colour_of_its_own_in_the_picture(clients, tmp_path):
    from matplotlib.image import imread

    # Far apart, so that no point lies on another.
    points = {f"c{i}": [[float(i), float(i % 5)]] for i in range(clients)}
    draw_landscape({"raw": points, "rewritten": points}, tmp_path / "map.png")
    draw_landscape({"raw": points, "rewritten": points}, tmp_path / "again.png")
    assert (tmp_path / "map.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    pixels = (imread(tmp_path / "map.png")[..., :3] * 255).round().astype(int).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    coloured = colours[(np.ptp(colours, axis=1) > 30) & (counts >= 4)]
    assert len(coloured) >= clients
