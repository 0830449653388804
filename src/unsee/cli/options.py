"""What several commands take, declared once; how models with roles are written; how a result is printed."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from unsee.device import choose_device
from unsee.errors import BadInput
from unsee.output import check_output
from unsee.settings import method_from_text

if TYPE_CHECKING:
    from unsee.data.examples import UnlearnData
    from unsee.editing.request import EditRequest
    from unsee.methods import Method

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


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What every command takes that writes something."""

    out: OutOption
    overwrite: OverwriteOption = False
    as_json: JsonOption = False

    def check(self, kind: str, inputs: Sequence[str | Path | None]) -> None:
        """Refuse an output that is in the way; see `check_output`."""
        check_output(self.out, self.overwrite, kind=kind, inputs=inputs)

    def present(self, value: Any, table: Callable[[], Any] | None, note: str) -> None:
        present(value, self.as_json, table, note)


@dataclass(frozen=True, kw_only=True)
class ModelOutputOptions(OutputOptions):
    """What every command takes that runs a model and writes something in one go."""

    device: DeviceOption = "auto"

    def check(self, kind: str, inputs: Sequence[str | Path | None]) -> None:
        super().check(kind, inputs)
        choose_device(self.device)


@dataclass(frozen=True, kw_only=True)
class RunOptions(OutputOptions):
    """What every command takes that runs models and can be continued."""

    device: DeviceOption = "auto"
    resume: ResumeOption = False

    def begin(
        self, inputs: Sequence[str | Path | None], kind: Literal["results", "demo"] = "results", adds: str = ""
    ) -> None:
        """Refuse an output that is in the way, then choose the device.

        Args:
            adds: the file that this command adds to results of others. While it is not there, nothing is in the way.
        """
        free = bool(adds) and not (self.out / adds).exists()
        check_output(self.out, self.overwrite or free, self.resume, kind, inputs)
        choose_device(self.device)


@dataclass(frozen=True, kw_only=True)
class DemoOptions(RunOptions):
    """A demo has its place."""

    out: OutOption = Path("runs/demo")


@dataclass(frozen=True, kw_only=True)
class StudyOptions(RunOptions):
    """What every command takes that makes and runs many models."""

    jobs: JobsOption = 1
    link: LinkOption = False


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """Models with roles, and whom they were to forget."""

    model: ModelsOption
    data: DataOption
    forget: ForgetOption
    seed: SeedOption = 10

    def load(self) -> tuple[UnlearnData, tuple[str, ...]]:
        """The data, and the subjects of its forget set."""
        from unsee.data.sources import load_data

        loaded = load_data(self.data)
        return loaded, loaded.choose(self.forget, self.seed)


@dataclass(frozen=True, kw_only=True)
class EditCommandOptions:
    """How a model is edited, by `unsee unlearn` or by a request."""

    method: Annotated[str, typer.Option(help="see `unsee list methods`")] = "nscvf"
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, see `unsee list methods`")] = None
    moments: Annotated[Path | None, typer.Option("--moments", help="from `unsee moments fit`")] = None
    seed: SeedOption = 10
    remember: Annotated[
        bool,
        typer.Option("--remember", help="leave what stands for those forgotten for later edits, see docs/sequence.md"),
    ] = False
    first: Annotated[
        str | None, typer.Option("--first", help="the model before all edits: what must stay is kept as it sees it")
    ] = None
    link: LinkOption = False

    def chosen(self) -> Method:
        """The method with its settings."""
        return method_from_text(self.method, self.settings or [])

    def request(
        self, data: UnlearnData, forget: Sequence[str], method: Method, gate: bool = True, retain_free: bool = False
    ) -> EditRequest:
        from unsee.editing.request import EditRequest

        return EditRequest(
            data, forget, method, self.seed, self.moments, gate, retain_free, self.remember, self.first, self.link
        )


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer is to read it: a parameter that is a dataclass of options becomes those options."""
    parameters = signature(command, eval_str=True).parameters.values()
    bundles: dict[str, Any] = {one.name: one.annotation for one in parameters if is_dataclass(one.annotation)}

    @wraps(command)
    def called_by_typer(**given: Any) -> None:
        for name, bundle in bundles.items():
            given[name] = bundle(**{field.name: given.pop(field.name) for field in fields(bundle)})
        command(**given)

    options: list[Parameter] = []
    for one in parameters:
        if one.name in bundles:
            options += signature(bundles[one.name], eval_str=True).parameters.values()
        else:
            options.append(one.replace(kind=Parameter.KEYWORD_ONLY))
    options.sort(key=lambda option: option.name == "as_json")  # the last one in every help
    called_by_typer.__signature__ = Signature(options)  # type: ignore[attr-defined]
    return called_by_typer


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


def present(value: Any, as_json: bool, table: Any, note: str = "") -> None:
    """Print a result: as JSON, or as what the function `table` returns (None: no table), with a note below.

    Raises:
        BadInput: it cannot be printed: a full disk, a pipe that nobody reads.
    """
    from unsee.cli.terminal import output

    try:
        if as_json:
            typer.echo(json.dumps(value, indent=2, default=str))
            return
        if table is not None:
            output.print(table())
        if note:
            typer.echo(note)
    except OSError as error:
        with suppress(OSError, ValueError):  # else what is left in its buffer would fail once more at the very end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise BadInput(
            f"the result cannot be printed ({error.strerror}); what the command wrote into files is complete"
        ) from error


def short(manifest: dict[str, Any]) -> dict[str, Any]:
    """What is printed of a manifest."""
    return {key: value for key, value in manifest.items() if key != "history"}
