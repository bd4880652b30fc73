"""The small run, made once, and the option that asks for the full counts."""

import time

import pytest
from forked import count_file_operations, forked
from small_run import CONFIG, Trial, facts_of

from fedsdr.config import load_config
from fedsdr.runs.shared_base import one_base


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the counts of docs/reliability.md")


@pytest.fixture(scope="session")
def full(request) -> bool:
    """Whether the full counts of docs/reliability.md are asked for."""
    return request.config.getoption("--full", default=False)


@pytest.fixture(scope="session")
def trial(tmp_path_factory, model_folder, data_folder) -> Trial:
    folder = tmp_path_factory.mktemp("trial")
    path = folder / "config.toml"
    path.write_text(CONFIG.format(model=model_folder, data=data_folder))
    made = Trial(path, load_config(path), {}, 0.0, 0, one_base())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", "")  # restored afterwards
        made.run(folder / "warm")  # imports what a run imports: children inherit it
        began = time.monotonic()
        made.run(folder / "whole")
        seconds = time.monotonic() - began
    counted = folder / "counted"
    ended = forked(lambda: print(count_file_operations(counted, lambda: made.run(counted))))
    assert ended.code == 0, ended.err
    return made._replace(
        facts=facts_of(folder / "whole"), seconds=seconds, operations=int(ended.out)
    )


@pytest.fixture(scope="session")
def half_run(trial, tmp_path_factory):
    """The folder of a run of one round of two."""
    out = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", "")
        trial.run(out, rounds=1)
    return out
