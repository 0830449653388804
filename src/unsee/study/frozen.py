"""Settings that a search found, in a TOML file that `unsee compare --settings` reads back exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unsee.errors import BadInput
from unsee.methods import METHODS, Method
from unsee.settings import named_method
from unsee.storage import replace_text
from unsee.strict_toml import Keys, as_it_is, assignments, mapping, name, open_toml, tables, text
from unsee.study.grid import Arm
from unsee.study.scenario import Resolved, as_json, same_people

OPTION = "--settings"


@dataclass(frozen=True)
class Frozen:
    """The best settings of every method, and on whom they were found.

    Attributes:
        chosen: (family, arm) -> the method with its settings.
        people: DATA argument -> fingerprint of the data that was searched on.
        about: what a comparison records: file, SHA-256, when and at which commit it was made.
    """

    chosen: Mapping[tuple[str, str], Method]
    people: Mapping[str, str]
    about: Mapping[str, Any]

    def arms(self, arms: Sequence[Arm], family: str) -> tuple[Arm, ...]:
        """The arms of a grid, each with the settings found for it.

        Raises:
            BadInput: nothing was found for one, or for another method under its name.
        """
        found = []
        for arm in arms:
            method = self.chosen.get((family, arm.name))
            if method is None or method.name != arm.method.name:
                raise BadInput(
                    f"{OPTION} {self.about['file']}: nothing for '{arm.name}' ({arm.method.name}) on {family}; "
                    "run `unsee study search` with this grid, or leave the method out"
                )
            found.append(Arm(arm.name, method))
        return tuple(found)

    def keep_apart(self, cases: Sequence[Resolved]) -> None:
        """Refuse to report on people on whom these settings were chosen.

        Raises:
            BadInput: names the case.
        """
        for case in cases:
            for source, fingerprint in self.people.items():
                if same_people(case.data.source, source) or case.data.fingerprint == fingerprint:
                    raise BadInput(
                        f"case '{case.case.name}': {case.data.source} shows people on whom {self.about['file']} was "
                        "searched; report on others, e.g. people of another seed"
                    )


def freeze(file: Path, results: Mapping[str, Any], methods: Mapping[tuple[str, str], Method]) -> None:
    """Write what a search found: settings to use first, then every try with its score, then where all that comes from.

    Args:
        results: `search.json`.
        methods: (family, arm) -> the method with the settings that were chosen.
    """
    use = "`unsee compare --grid GRID --settings THIS`"
    lines = [f"# Found by `unsee study search`, for {use}. Do not edit: search again."]
    for (family, arm), method in methods.items():
        lines += ["", "[[chosen]]", *assignments({"family": family, "arm": arm, "method": method.name})]
        lines += ["[chosen.settings]", *assignments(as_json(method))]
    for arm in results["arms"]:
        for tried in arm["tries"]:
            about = {"family": arm["family"], "arm": arm["arm"], "status": tried["status"]}
            scores = {key: tried[key] for key in ("total", "distance", "seconds")}
            scores |= {f"{what}_drop": value for what, value in tried["drops"].items()}
            known = {key: value for key, value in scores.items() if value is not None}
            lines += ["", "[[tries]]", *assignments({**about, **known})]
            lines += ["[tries.settings]", *assignments(tried["searched"])]
    for case in results["cases"]:
        about = {key: case[key] for key in ("name", "family", "data", "fingerprint", "request")}
        lines += ["", "[[people]]", *assignments(about)]
    made = results["provenance"]
    record = {key: made[key] for key in ("created", "command", "commit", "dirty") if made.get(key) is not None}
    lines += ["", "[search]", *assignments({"seconds": results["seconds"], "tries": results["tries"]})]
    lines += ["[search.weights]", *assignments(results["weights"]), "", "[provenance]", *assignments(record)]
    replace_text(file, "\n".join(lines) + "\n")


def read_frozen(file: Path) -> Frozen:
    """What `freeze` wrote.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    keys = open_toml(file, OPTION)
    chosen: dict[tuple[str, str], Method] = {}
    for i, item in enumerate(keys.take("chosen", tables)):
        one = Keys(item, f"{keys.where}chosen[{i}].")
        place = one.take("family", text), one.take("arm", name)
        method, settings = one.take("method", text), one.take("settings", mapping)
        one.done()
        if method not in METHODS:
            raise BadInput(f"{one.where}method: '{method}' is unknown; expected one of {', '.join(METHODS)}")
        if place in chosen:
            raise BadInput(f"{one.where}arm: '{place[1]}' on {place[0]} is given twice; search again")
        chosen[place] = named_method(method, settings, f"{one.where}settings: ")
    people = {}
    for i, item in enumerate(keys.take("people", tables)):
        one = Keys(item, f"{keys.where}people[{i}].")
        people[one.take("data", text)] = one.take("fingerprint", text)
    made = keys.take("provenance", mapping)
    for rest in ("tries", "search"):
        keys.take(rest, as_it_is, None)
    keys.done()
    about = {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **made}
    return Frozen(chosen, people, about)
