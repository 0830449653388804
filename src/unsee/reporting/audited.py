"""The page of `unsee audit`: a sentence to quote, claims, everybody beside strangers, what is not claimed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unsee.reporting.comparison import PROVENANCE
from unsee.reporting.figures import COLOURS, FIXED
from unsee.reporting.parts import Drawing, Measured, Row, Section, drawing, duration, templates

TONES = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "unsure"}
TITLES = {
    "forgotten_new": "forgotten, new pictures",
    "forgotten_taught": "forgotten, taught pictures",
    "facts": "facts forgotten too",
    "not_avoided": "not shunned",
    "others_kept": "others kept",
    "lookalikes_kept": "look-alikes kept",
    "attributes_kept": "visible attributes kept",
    "text_kept": "text kept",
    "healthy": "answers sound",
}
WHERE = {"test": "new pictures", "train": "taught pictures"}
ROLES = {"before": FIXED["vanilla"], "after": COLOURS[0], "reference": FIXED["gold"]}


def claims_section(results: Measured) -> Section:
    """Every claim with its verdict and what tells it; a retrained model beside, where one was given."""
    beside = results["reference"]
    others = {claim["id"]: claim for claim in beside["claims"]} if beside is not None else {}
    head = ("claim", "verdict", "what tells it", *(("retrained model",) if others else ()))
    rows = tuple(
        (
            TITLES[claim["id"]],
            claim["verdict"],
            claim["finding"],
            *((f"{others[claim['id']]['verdict']}: {others[claim['id']]['finding']}",) if others else ()),
        )
        for claim in results["claims"]
    )
    text = (
        "Recognition is measured in parts of what the model before knew: 100 % is that model, 0 % is what strangers "
        "get who stand in for the forgotten under their names and facts. Ends are 95 % intervals over people. Margins "
        "were fixed before the run."
    )
    drawings = (people_drawing(results),) if results["people"]["after"] else ()
    return Section("Claims", text, head, rows, drawings, brief=(0, 1, 2))


def lines_section(results: Measured) -> Section:
    """The evidence behind the claims, line by line."""
    rows = tuple(
        (TITLES[claim["id"]], line["of"], line["verdict"], line["finding"])
        for claim in results["claims"]
        for line in claim["lines"]
    )
    return Section(
        "Evidence", "Everything behind the claims.", ("claim", "of", "verdict", "finding"), rows, folded=True
    )


def people_drawing(results: Measured) -> Drawing:
    """Each forgotten person against the band of strangers, of new and of taught pictures."""
    people, names = results["people"], results["provenance"]["names"]
    places = [place for place in WHERE if place in people["after"]]
    subjects = list(dict.fromkeys(s for place in places for s in people["after"][place]["targets"]))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
        for axes, place in zip(panels, places, strict=True):
            _panel(axes, place, subjects, people, names)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, handletextpad=0.2)

    said = "; ".join(_said(place, people, names) for place in places)
    caption = (
        "Each person who was to be forgotten, in parts of what the model before knew. The band holds nine tenths of "
        "the strangers who stand in for them, dots are all of them. Good is inside the band; above is remembered, "
        "below is shunned."
    )
    size = (7.2, 1.6 + 0.34 * len(subjects))
    return drawing("people", "people", caption, f"Forgotten people beside strangers. {said}.", size, paint)


def _panel(axes: Axes, place: str, subjects: Sequence[str], people: Measured, names: Measured) -> None:
    band = people["after"][place]["strangers"]
    for row, subject in enumerate(subjects):
        values = band.get(subject, [])
        if values:
            low, high = (100 * values[round(share * (len(values) - 1))] for share in (0.05, 0.95))
            axes.barh(row, high - low, 0.62, low, color="#dfe4ea", label="strangers, nine tenths" if not row else "_")
            axes.scatter([100 * x for x in values], [row] * len(values), s=3, c="#98a2ae", linewidths=0, label="_")
    for role, colour in ROLES.items():
        found = people.get(role, {}).get(place, {}).get("targets", {})
        known = [(100 * x, row) for row, subject in enumerate(subjects) if (x := found.get(subject)) is not None]
        axes.scatter([x for x, _ in known], [row for _, row in known], s=26, c=colour, label=role if known else "_")
    axes.axvline(0, color="#8a929c", linewidth=0.8)
    axes.set_yticks(range(len(subjects)), [names.get(subject, subject) for subject in subjects])
    axes.set_ylim(len(subjects) - 0.5, -0.5)
    axes.set_xlabel("recognition that remains, %")
    axes.set_title(WHERE[place])


def _said(place: str, people: Measured, names: Measured) -> str:
    after = people["after"][place]["targets"]
    return f"{WHERE[place]}: " + ", ".join(f"{names.get(s, s)} {100 * x:.0f} %" for s, x in after.items())


def not_claimed(results: Measured) -> Iterator[str]:
    """What this audit does not say, however it ends."""
    tensors, asked = results["tensors"], results["asked_of"]
    if tensors is not None and tensors["changed"] and not tensors["language_changed"]:
        yield (
            "That the change holds against somebody who has the original model. The language model is identical to the "
            "one before, so putting the original vision tower and projector back brings everybody back."
        )
    yield (
        "That text has forgotten. Asked by name, without a picture, the model is to answer as before; that is one of "
        "the claims, not a defect."
    )
    yield "That the forgotten cannot be taught again, or brought back by weights, prompts or pictures made for it."
    yield (
        "Anything about people, pictures and questions other than those asked about, or about answers drawn at random: "
        "answers are greedy, and likelihoods are of the names and facts in the data."
    )
    if asked["yardstick"] == "strangers":
        yield (
            f"That the {asked['stand_ins']} strangers are strangers. That neither model was shown them is taken from "
            "whoever gave them."
        )
    else:
        yield (
            "That anything was forgotten. There were too few strangers, so people the model knows stood in: these can "
            "refute forgetting, not show it."
        )


def tensors_said(tensors: Measured | None) -> str:
    """Which parts of the checkpoint differ."""
    if tensors is None:
        return "The two checkpoints do not hold the same tensors."
    language = tensors["language_changed"]
    return (
        f"{tensors['changed']} of {tensors['tensors']} tensors differ. The language model is "
        + ("byte-identical" if not language else f"not identical: {language} of {tensors['language_tensors']} differ")
        + "."
    )


def page(results: Measured) -> str:
    """The page as text. The same results give the same bytes."""
    shown = [claims_section(results), lines_section(results)]
    about = results["provenance"]
    return (
        templates()
        .get_template("audit.html.j2")
        .render(
            word=results["verdict"],
            tone=TONES[results["verdict"]],
            sentence=results["sentence"],
            sections=shown,
            markup={one.name: Markup(one.inline) for section in shown for one in section.drawings},
            not_claimed=list(not_claimed(results)),
            tensors=tensors_said(results["tensors"]),
            asked=results["asked_of"],
            tests=results["tests"],
            alpha=results["settings"]["alpha"],
            seconds=duration(about["seconds"]),
            provenance=dict.fromkeys(PROVENANCE) | dict(about),
        )
    )


def table(results: Measured) -> tuple[Row, tuple[Row, ...]]:
    """Claims for a terminal."""
    return claims_section(results).short()
