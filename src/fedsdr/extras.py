"""Packages that only some engines need: is one there, and what to type if it is not."""

import importlib
import importlib.util
from typing import Any

from fedsdr.errors import UserError


def is_installed(module: str) -> bool:
    """Return whether `module` can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def import_extra(module: str, engine: str, setting: str = "teacher.engine") -> Any:
    """Import `module`; raise UserError with the install command of the engine's extra.

    `setting` is what the user asked for the engine with."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(
            f"{setting}: '{engine}' needs the package {module}, which is not installed: "
            f"pip install -e '.[{engine}]'"
        ) from None
