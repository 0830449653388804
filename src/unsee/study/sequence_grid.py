"""Grid files of `unsee sequence`: one model, requests one after another, and who carries them out how."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.methods import FeatureMethod, Method
from unsee.strict_toml import Keys, at_least_one, open_toml, several, tables, text, truth, whole
from unsee.study.grid import Case, arm_in, cases_in, named_apart

Mode = Literal["chain", "remembered", "without pictures", "merged"]


@dataclass(frozen=True)
class SequenceArm:
    """How requests are carried out.

    Attributes:
        mode: `chain`: each edit begins where the last one ended, and those forgotten before are kept as they are then
            seen; `remembered`: their pictures are deleted, and statistics of them kept, see `remembered`; `without
            pictures`: neither is there; `merged`: every edit begins with the vanilla model, and all of them are added
            up inside the null space, see `merge`.
        anchored: what must stay is kept as the vanilla model sees it, see `drift_reference`; else as the model before
            each request. For methods on features.
        orders: 0: as the grid names the subjects; others: shuffled with that seed.
    """

    name: str
    method: Method
    mode: Mode
    anchored: bool
    orders: tuple[int, ...]

    def seen(self, data: UnlearnData, earlier: Sequence[str]) -> UnlearnData:
        """What of the data is there when those of `earlier` were forgotten."""
        if self.mode in ("chain", "merged") or not earlier:
            return data
        return dataclasses.replace(data, train=data.train.without(earlier), validation=data.validation.without(earlier))


@dataclass(frozen=True)
class SequenceGrid:
    """One case, whose subjects are asked for one by one, and every arm on it.

    Attributes:
        pictures: test pictures asked about per person after each request; of the person of this request all, and of
            everybody all after the last.
    """

    case: Case
    arms: tuple[SequenceArm, ...]
    pictures: int


def read_sequence(path: Path) -> SequenceGrid:
    """The grid of `unsee sequence`.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    keys = open_toml(path, "--grid")
    cases = cases_in(keys)
    pictures = keys.take("pictures", at_least_one, 4)
    given = keys.take("arms", tables)
    keys.done()
    if len(cases) != 1:
        raise BadInput(f"{keys.where}models: {len(cases)} cases; expected one, so give one family, seed and request")
    arms = tuple(_arm(Keys(item, f"{keys.where}arms[{i}].")) for i, item in enumerate(given))
    return SequenceGrid(cases[0], named_apart(arms, keys.where), pictures)


def _arm(keys: Keys) -> SequenceArm:
    mode = keys.take("mode", _mode, "chain")
    anchored = keys.take("anchored", truth, True)
    orders = keys.take("orders", several(whole), (0,))
    arm = arm_in(keys, sweeps=False)
    if mode in ("merged", "remembered") and not (isinstance(arm.method, FeatureMethod) and arm.method.needs_moments):
        raise BadInput(f"{keys.where}mode: '{mode}' needs a null space, which {arm.method.name} has not; take nscvf")
    anchored = anchored and isinstance(arm.method, FeatureMethod) and mode != "merged"
    return SequenceArm(arm.name, arm.method, mode, anchored, orders)


def _mode(value: object, where: str) -> Mode:
    if text(value, where) not in get_args(Mode):
        raise BadInput(f"{where}: '{value}' is unknown; expected one of {', '.join(get_args(Mode))}")
    return cast(Mode, value)
