"""What the site needs beside the pages: links to files of the repository become their paths."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace a link to a file outside docs/ by its path. ValueError if there is no such file."""

    def path_of(match: re.Match[str]) -> str:
        if not (ROOT / match[2]).exists():
            raise ValueError(f"a link to {match[2]}, which does not exist")
        return f"`{match[2]}`"

    return OUTSIDE.sub(path_of, markdown)
