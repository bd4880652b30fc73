"""The rooms of the design: imports point down, and what is heavy is imported where it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fedsdr"
LINES = [
    {"__init__", "__main__"},  # the package's door; each imports its room when it is asked
    {"api"},
    {"cli"},
    {"research", "flower"},
    {"runs", "report"},
    {"training", "distill", "evaluation"},
    {"models", "data", "teachers", "federation"},
    {"algorithms", "config"},
]
ROOMS = {room: depth for depth, line in enumerate(LINES) for room in line}
BOTTOM = len(LINES)


def room_of(module: str) -> str:
    """`fedsdr.data.readers` -> `data`; a file beside the rooms is its own room at the bottom."""
    return module.split(".")[1] if module.count(".") else ""


def arrows() -> list[tuple[str, str, str]]:
    """Every (file, its room, imported room) inside the package, function bodies included."""
    found = []
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: relative import"
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.startswith("fedsdr."):
                    found.append(("/".join(parts), parts[0], room_of(name)))
    return found


def test_imports_point_down_and_never_sideways():
    wrong = [
        (file, target)
        for file, own, target in arrows()
        if own != target
        and ROOMS.get(own, BOTTOM) >= ROOMS.get(target, BOTTOM)
        and not (own not in ROOMS and target not in ROOMS)
    ]
    assert wrong == []
    assert len(arrows()) > 100  # the walk finds something


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("flwr", {"flower"}),
        ("peft", {"models"}),
        ("transformers", {"models", "data"}),
    ],
)
def test_a_library_is_known_to_its_own_rooms_alone(library, allowed):
    users = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            if any(n.split(".")[0] == library for n in names):
                users.add(path.relative_to(SOURCE).as_posix())
    assert all(any(user.startswith(room + "/") for room in allowed) for user in users), users


def test_help_imports_nothing_heavy():
    code = (
        "import sys, fedsdr.cli.main as m\n"
        "heavy = {'torch', 'transformers', 'flwr', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "m.cli.main(['--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


def test_nothing_is_unpickled():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert "pickle" not in text, path
        assert "torch.load" not in text, path
