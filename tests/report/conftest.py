import json
import shutil

import pytest

from fedsdr.evaluation.answer_audit import audit_answer
from fedsdr.evaluation.held_out import ClientScores, ExampleScore
from fedsdr.evaluation.results import ClientResult, build_results

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def scores(loss, rows=1, score=0.5):
    """The scores of one model: its losses differ a little from row to row."""
    audit = audit_answer("", "a", "a", "rouge_l")
    return ClientScores(
        "rouge_l",
        tuple(
            ExampleScore(f"row-{i}", loss + 0.01 * (i % 5), 1, score, 3, True, audit)
            for i in range(rows)
        ),
    )


@pytest.fixture
def run_of(tmp_path):
    """A run folder with made-up numbers: its clients, rounds and test rows a client."""

    def make(clients, rounds=2, rows=1, name="run"):
        folder = tmp_path / name
        (folder / "distilled").mkdir(parents=True)
        place = {client: i / len(clients) for i, client in enumerate(clients)}
        models = {
            client: {"base": scores(2.0, rows), "global": scores(1.5 + 0.4 * at, rows),
                     "client": scores(1.0 + at, rows)}
            for client, at in place.items()
        }  # fmt: skip
        cost = {"tokens": {"train R.raw": 1234}, "seconds": {"train R.raw": 56.0},
                "bytes_up": 5e6, "bytes_down": 0}  # fmt: skip
        results = build_results(
            method="fedsdr", algorithm="fedavg", seed=0, rounds=rounds, cost=cost,
            clients={client: ClientResult(9, of) for client, of in models.items()},
        )  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results))
        refused = {2: [{"id": clients[0], "reason": "norm"}]}
        records = [
            {"round": r, "refused": refused.get(r, []),
             "clients": [{"id": client, "num_examples": 9, "norm": 1.0 + at,
                          "S.rewritten.loss": 1.5 / r, "R.raw.loss": 2.0 / r + at}
                         for client, at in place.items() if r != 2 or client != clients[0]],
             "bytes_up": 1, "bytes_down": 1, "step_norm": 0.5, "seconds": 1.0}
            for r in range(1, rounds + 1)
        ]  # fmt: skip
        (folder / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        audit = {"answers": 9, "rewritten": 5, "length_ratio": 2.5, "all_new_tokens": 77,
                 "kept_raw": {"truncated": 4}}  # fmt: skip
        audits = {"clients": dict.fromkeys(clients, audit)}
        (folder / "distilled/audit.json").write_text(json.dumps(audits))
        (folder / "config.toml").write_text("seed = 0\n")
        return folder

    return make


@pytest.fixture(scope="session")
def browser():
    """A real browser; tests that need one are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a file or an address at a width and in a colour scheme; at the end, no errors."""
    contexts, errors = [], []

    def open(where, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(where if str(where).startswith("http") else f"file://{where}")
        return page

    yield open
    for context in contexts:
        context.close()
    assert errors == []
