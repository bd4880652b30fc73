"""A disk that is full: one line, exit code 2, and the same bytes when there is room again."""

import errno
import os
import random
import shutil
import subprocess

import pytest
from forked import GROWING, at_file_operation, command, count_file_operations, forked
from small_run import differences


def no_space():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wrong_after(ended, trial, out):
    """Return what is wrong with a run that met a full disk, and with the run that goes on."""
    if ended.code != 2 or len(ended.lines) != 1 or "Traceback" in ended.err:
        return ended.err
    if "No space left on device" not in ended.lines[0]:
        return ended.lines
    left = [str(p) for p in out.rglob("*") if p.suffix in (".tmp", ".old")]
    resumed = forked(lambda: trial.run(out, resume=True))
    return left or resumed.err or differences(trial, out)


def test_a_disk_that_is_full_from_any_file_operation_on_ends_the_run_in_one_line(
    trial, full, tmp_path
):
    counted = tmp_path / "counted"
    ended = forked(
        lambda: print(count_file_operations(counted, lambda: trial.run(counted), GROWING))
    )
    numbers = range(1, int(ended.out) + 1)
    wrong = {}
    for number in random.Random(3).sample(numbers, 40 if full else 2):
        out = tmp_path / f"run-{number}"

        def work(out=out, number=number):
            os.environ["FEDSDR_CACHE"] = f"{out}-cache"
            at_file_operation(number, out, no_space, GROWING)
            command("run", trial.path, "--out", out)()

        if found := wrong_after(forked(work), trial, out):
            wrong[f"full from operation {number} on"] = found
        shutil.rmtree(out, ignore_errors=True)
    assert wrong == {}


def test_a_disk_of_any_size_that_is_too_small_ends_the_run_in_one_line(trial, full, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    whole = sum(-(-len(x) // 4096) * 4096 for x in trial.facts.values() if isinstance(x, bytes))
    sizes = range(8 << 10, whole + (160 << 10), 8 << 10)
    wrong, finished = {}, 0
    for size in sizes if full else (64 << 10,):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("this user may not mount a small file system")
        try:
            out = disk / "run"

            def work(out=out):
                os.environ["FEDSDR_CACHE"] = str(tmp_path / "run-cache")
                command("run", trial.path, "--out", out)()

            ended = forked(work)
            subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
            finished += ended.code == 0
            found = differences(trial, out) if ended.code == 0 else wrong_after(ended, trial, out)
            if found:
                wrong[f"{size >> 10} KiB"] = found
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    assert wrong == {}
    assert bool(finished) == full  # the sizes reach from too small to large enough
