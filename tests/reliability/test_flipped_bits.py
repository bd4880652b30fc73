"""One bit flipped in each file of a run folder in turn: found, or harmless, never used."""

import shutil

from small_run import differences

from fedsdr.errors import UserError


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def bits_of(path, count):
    """Return `count` bits spread over the file, the last one in its last byte."""
    bits = 8 * path.stat().st_size
    return sorted({(i + 1) * bits // count - 3 for i in range(count)} & set(range(bits)))


def test_a_flipped_bit_is_found_or_harmless_when_the_run_is_resumed(
    trial, half_run, full, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSDR_CACHE", "")
    outcomes, wrong = {"found": 0, "harmless": 0}, {}
    files = [path for path in sorted(half_run.rglob("*")) if path.is_file()]
    for path in files:
        for bit in bits_of(path, 8 if full else 1):
            out, name = tmp_path / "run", path.relative_to(half_run)
            shutil.copytree(half_run, out)
            flip(out / name, bit)
            try:
                trial.run(out, resume=True)
            except UserError as error:
                outcomes["found"] += 1
                if "\n" in str(error):
                    wrong[f"{name} bit {bit}"] = str(error)
            else:
                outcomes["harmless"] += 1
                if found := differences(trial, out):
                    wrong[f"{name} bit {bit}"] = found
            shutil.rmtree(out)
    print(outcomes)
    assert wrong == {}
    assert len(files) > 30
    assert outcomes["found"] > len(files) / 2
