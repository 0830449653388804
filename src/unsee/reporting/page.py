"""What every page is made with: the templates of this room."""

from __future__ import annotations

from pathlib import Path

import jinja2


def templates() -> jinja2.Environment:
    """Strict about names, and everything that is no markup is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
