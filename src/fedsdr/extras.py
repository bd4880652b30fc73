"""Optional packages: test whether one is installed, or import it with a helpful error."""

import importlib
import importlib.util
from typing import Any

from fedsdr.errors import UserError


def is_installed(module: str) -> bool:
    """Return whether `module` is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def import_extra(module: str, extra: str, setting: str = "teacher.engine") -> Any:
    """Import `module`, or raise UserError with the command that installs `extra`.

    `setting` is the configuration key or option that requires it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(
            f"{setting}: '{extra}' needs the package {module}, which is not installed: "
            f"pip install 'fedsdr[{extra}]'"
        ) from None
