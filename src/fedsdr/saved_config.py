"""config.toml of a run folder: its first line names the run and has a checksum of what follows.

    # fedsdr run 3f2a09c1d4e5b678, SHA-256 of this name and the lines below: 9c1e...

A file that is cut off still has its checksum, and one without this line is not the file that the
checkpoint names. Older versions wrote the checksum as the last line, or none. The second line has
the versions with which the run was last started, and the hash of its data.json:

    # made with fedsdr 0.1.0, torch 2.13.0, ...; rows 5d41402abc4b2a76
"""

import platform
import re
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import fedsdr
from fedsdr.errors import UserError
from fedsdr.file_reading import RESTORE, read_text
from fedsdr.files import write_atomically

_FIRST = "# fedsdr run {}, SHA-256 of this name and the lines below: {}\n"
_LAST = "# SHA-256 of the lines above: "  # of older versions
_NOTE = re.compile(r"# made with (.*?)(?:; rows ([0-9a-f]+))?\n")
_PACKAGES = ("torch", "transformers", "peft")


def write_saved(path: Path, text: str, run: str) -> None:
    """Write the text below the name of its run with a checksum, the versions of now, and the hash
    of the data.json beside it."""
    found = [f"fedsdr {fedsdr.__version__}", *(f"{name} {version(name)}" for name in _PACKAGES)]
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    data = path.parent / "data.json"
    rows = f"; rows {sha256(data.read_bytes()).hexdigest()[:16]}" if data.is_file() else ""
    text = f"# made with {', '.join([*found, machine])}{rows}\n{text}"
    write_atomically(path, _FIRST.format(run, _digest(run, text)) + text)


def read_saved(path: Path) -> tuple[str, str]:
    """Return the text of a run's config.toml, and the name of the run; '' from older versions.

    UserError when it is missing, or its checksum does not fit.
    """
    text, run = read_text(path, RESTORE), ""
    if found := re.match(_FIRST.format("([0-9a-f]+)", "([0-9a-f]*)"), text):
        run, digest = found.groups()
        text = text[found.end() :]
        fits = digest == _digest(run, text)
    else:
        text, last, digest = text.partition(_LAST)
        fits = not last or digest.strip() == _digest("", text)
    if not fits:
        raise UserError(
            f"{path}: was changed after the run began; restore it, or start a new run with it in "
            "another --out"
        )
    return text, run


def note_of(text: str) -> tuple[str, str]:
    """Return the versions and the hash of data.json that the text of a run's config.toml notes; ''
    from older versions, and for the hash from a server, which has no rows."""
    found = _NOTE.match(text)
    return (found[1], found[2] or "") if found else ("", "")


def _digest(run: str, text: str) -> str:
    return sha256((run + text).encode()).hexdigest()
