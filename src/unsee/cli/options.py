"""What several commands take, declared once; and how models with roles are written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from unsee.errors import BadInput

DataOption = Annotated[
    str, typer.Option("--data", help="people[:count=60,seed=10], folder:PATH or dataset:PATH, see docs/data.md")
]
SUBJECTS = "comma list, @file (one name a line), first:N or random:N; may be given again"
ForgetOption = Annotated[list[str], typer.Option("--forget", help=SUBJECTS)]
OutOption = Annotated[Path, typer.Option("--out", help="where the result goes")]
ModelOption = Annotated[str, typer.Option("--model", help="checkpoint folder or hub id")]
ModelsOption = Annotated[list[str], typer.Option("--model", help="ROLE=PATH, once per model")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="same seed, same machine, same result")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="where models run: auto (a GPU if there is one), cpu, cuda or cuda:N")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace an existing output")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="continue a broken run")]
LinkOption = Annotated[
    bool,
    typer.Option(
        "--link", help="hard links, no copies, of weight files that stay: who writes there in place reaches --model"
    ),
]
JobsOption = Annotated[
    int, typer.Option("--jobs", min=1, help="runs side by side; they share the cores, and each takes its own memory")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for machines")]


def at_home(argument: str) -> str:
    """An argument whose path begins with `~`: after `--out=`, `ROLE=` and `@` shells leave that to the program."""
    found = re.match(r"((?:--[a-z-]+=)?(?:[\w-]+=)?@?)(~(?:/.*)?)$", argument, re.DOTALL)
    return found[1] + os.path.expanduser(found[2]) if found else argument


def roles(models: Sequence[str]) -> dict[str, str]:
    """What `--model ROLE=PATH` was given as: role -> path.

    Raises:
        BadInput: not of this form, a role that is no file name, or one given twice.
    """
    from unsee.evaluation.results import check_role

    found: dict[str, str] = {}
    for given in models:
        role, equals, path = given.partition("=")
        if not (role and equals and path):
            raise BadInput(f"--model {given}: expected ROLE=PATH, e.g. vanilla=models/vanilla")
        check_role(role, f"--model {given}")
        if role in found:
            raise BadInput(f"--model {given}: role '{role}' is given twice")
        found[role] = path
    return found
