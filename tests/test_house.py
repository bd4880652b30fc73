"""The size of the house: src/ stays short enough to be read."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fedsdr"
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}

TOTAL_LINES = 28_080  # lower it when something goes


def lines_of(path: Path) -> int:
    return path.read_text().count("\n")


def test_no_file_has_over_300_lines():
    assert {name for name, path in FILES.items() if lines_of(path) > 300} == set()


def test_no_function_has_over_60_lines():
    long = {
        f"{name} {node.name}"
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= 60
    }
    assert long == set()


def test_every_file_name_occurs_once():
    counts = Counter(
        path.name
        for name, path in FILES.items()
        if not name.startswith("cli/") and path.name != "__init__.py"
    )
    assert {name for name, count in counts.items() if count > 1} == set()


def test_the_source_has_at_most_the_agreed_number_of_lines():
    assert sum(map(lines_of, FILES.values())) <= TOTAL_LINES


def test_no_source_file_needs_the_package_to_be_installed():
    # A GPU machine without a network runs a checkout: it has no metadata of the distribution.
    asking = [name for name, path in FILES.items() if 'version("fedsdr")' in path.read_text()]
    assert asking == []
