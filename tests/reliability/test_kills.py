"""SIGKILL at any moment, then the same command again: the bytes of an uninterrupted run."""

import os
import random
import shutil
import signal

from forked import at_file_operation, command, forked, started
from small_run import differences


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def wrong_after_resuming(trial, out):
    """Resume in another child; return what is wrong then."""
    ended = forked(lambda: trial.run(out, resume=True))
    if ended.code:
        return ended.err
    left = [str(p) for p in out.rglob("*") if p.suffix in (".tmp", ".old")]
    return differences(trial, out) + left


def test_a_run_killed_at_random_moments_resumes_to_the_same_bytes(trial, full, tmp_path):
    rng, wrong = random.Random(1), {}
    for number in range(30 if full else 2):
        out, seconds = tmp_path / f"run-{number}", rng.uniform(0.02, 1) * trial.seconds
        forked(lambda out=out: trial.run(out), kill_after=seconds)
        if found := wrong_after_resuming(trial, out):
            wrong[f"after {seconds:.2f} s of {trial.seconds:.2f}"] = found
        shutil.rmtree(out)
    assert wrong == {}


def test_a_run_killed_before_any_file_operation_resumes_to_the_same_bytes(trial, full, tmp_path):
    rng, wrong = random.Random(2), {}
    for number in sorted(rng.sample(range(1, trial.operations + 1), 40 if full else 3)):
        out = tmp_path / f"run-{number}"

        def work(out=out, number=number):
            at_file_operation(number, out, kill_self)
            trial.run(out)

        assert forked(work).code == -signal.SIGKILL, number
        if found := wrong_after_resuming(trial, out):
            wrong[f"before operation {number} of {trial.operations}"] = found
        shutil.rmtree(out)
    assert wrong == {}


def test_a_second_process_is_refused_in_one_line_and_the_first_is_not_disturbed(trial, tmp_path):
    out = tmp_path / "run"

    def work():
        at_file_operation(trial.operations * 2 // 3, out, pause_once())  # after round 1
        trial.run(out)

    first = started(work)
    try:
        _, status = os.waitpid(first.process, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        for words in (("run", trial.path, "--out", out, "--resume"), ("evaluate", out)):
            second = forked(command(*words))
            busy = f"fedsdr: {out}: another process works there; wait until it ends"
            assert (second.code, second.lines) == (2, [busy]), words
    finally:
        os.kill(first.process, signal.SIGCONT)
        ended = first.end()
    assert ended.code == 0
    assert differences(trial, out) == []


def pause_once():
    """Return a function that stops this process the first time."""
    paused = []

    def pause():
        if not paused:
            paused.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)

    return pause
