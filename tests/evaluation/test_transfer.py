import pytest

from fedsdr.evaluation.answer_audit import audit_answer
from fedsdr.evaluation.held_out import ClientScores, ExampleScore
from fedsdr.evaluation.transfer import transfer_of


def scores(*rows):
    audit = audit_answer("", "a", "a", "exact_label")
    return ClientScores(
        "exact_label",
        tuple(ExampleScore(str(i), *row, 3, True, audit) for i, row in enumerate(rows)),
    )


GOOD, BAD = scores((1.0, 2, 1.0), (3.0, 2, 1.0)), scores((8.0, 2, 0.0), (8.0, 2, 0.0))


def test_own_and_other_domains_are_told_apart_and_every_client_counts_once():
    own = {
        "ann": {"ann": GOOD, "bob": BAD, "eve": BAD},
        "bob": {"ann": GOOD, "bob": GOOD, "eve": BAD},
    }
    found = transfer_of({"ann": GOOD, "bob": BAD, "eve": BAD}, own, seed=0)
    assert list(found["matrix"]) == ["global", "ann", "bob"]
    assert found["matrix"]["ann"]["bob"]["loss"] == pytest.approx(4.0)
    assert found["matrix"]["ann"]["ann"]["loss_ci"] == pytest.approx([0.5, 1.5])
    means = found["means"]
    assert means["global"]["loss"] == pytest.approx((1 + 4 + 4) / 3)
    assert means["client"]["own domain"]["score"] == 1
    assert means["client"]["other domains"]["score"] == pytest.approx((0 + 1 / 2) / 2)
    assert means["client"]["other domains"]["loss"] == pytest.approx((4 + (1 + 4) / 2) / 2)
    low, high = means["client"]["other domains"]["score_ci"]
    assert 0 <= low < 0.25 < high <= 1


def test_a_client_that_took_no_part_is_a_column_of_the_matrix_and_in_no_mean():
    own = {
        "ann": {"ann": GOOD, "bob": GOOD, "eve": BAD},
        "bob": {"ann": BAD, "bob": GOOD, "eve": BAD},
    }
    found = transfer_of({"ann": GOOD, "bob": GOOD, "eve": BAD}, own, seed=0, absent=["eve"])
    assert found["matrix"]["ann"]["eve"]["loss"] == pytest.approx(4.0)
    assert found["means"]["global"]["loss"] == pytest.approx(1.0)
    assert found["means"]["client"]["other domains"]["loss"] == pytest.approx((1 + 4) / 2)
    alone = transfer_of(
        {"ann": GOOD, "eve": BAD}, {"ann": {"ann": GOOD, "eve": BAD}}, seed=0, absent=["eve"]
    )
    assert alone["means"]["client"].keys() == {"own domain"}
