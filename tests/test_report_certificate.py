"""The drift certificate in the report: what is computed, what is only measured, and nothing that is not known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_report import LAYERS, certificate, certified, make_run, page_of

from unsee.reporting.parts import UNSCORED


def drift_section(text: str) -> str:
    return text[text.index('id="drift"') : text.index('id="claims"')]


@pytest.mark.usefixtures("drawings")
def test_the_report_shows_the_certificate_if_there_is_one(tmp_path: Path) -> None:
    assert 'id="drift"' not in page_of(make_run(tmp_path / "without"))
    directory = make_run(tmp_path / "with", certified(certificate()))
    section = drift_section(page_of(directory))
    rows = re.findall(r'<code title="([^"]*)">([^<]*)</code></th>(.*?)</tr>', section, re.S)
    assert [(full, short) for full, short, _ in rows] == [
        (LAYERS[0], "layers.2.self_attn.k_proj"),
        (LAYERS[1], "multi_modal_projector.linear_1"),
    ]
    assert [re.findall(r">([^<>]*%)<", cells) for *_, cells in rows] == [
        ["4.0%", "10%", "4.0%", "90%"],
        ["1.0%", "10%", "4.0%", "90%"],
    ]
    text = (directory / "figures" / "certificate-unlearned-tokens.svg").read_text()
    assert "pictures not used: first order 3.1%" in text
    assert "k_proj: drift 4.0%, bound 10%" in (directory / "figures" / "certificate-unlearned-layers.svg").read_text()
    only_vanilla = make_run(tmp_path / "vanilla", lambda results: results["vanilla"].update(certificate=certificate()))
    assert 'id="drift"' not in page_of(only_vanilla), "vanilla may have been unlearned before: that is not this edit"


def test_a_certificate_of_an_older_version_is_shown_without_what_it_lacks(tmp_path: Path) -> None:
    old = {"layers": {name: {"drift": 0.0} for name in LAYERS}, "meaning": "sqrt(tr(dW C dW^T) / tr(W C W^T))"}
    directory = make_run(tmp_path / "run", certified(old))
    section = drift_section(page_of(directory))
    cells = re.findall(r"</code></th>(.*?)</tr>", section, re.S)
    assert [re.findall(r">([^<>]+)<", row.replace("\n", "")) for row in cells] == [["0%", *[UNSCORED] * 3]] * 2
    assert "measured: " not in section
    assert not (directory / "figures" / "certificate-unlearned-tokens.svg").exists()
    assert (directory / "figures" / "certificate-unlearned-layers.svg").exists()


@pytest.mark.parametrize(
    ("found", "says", "says_not"),
    [
        (certificate(), ["more than 4.0%", "no layer’s outputs by more than 10%", "2.0 times as much"], ["rounding"]),
        (certificate(bound=1.2), ["exceeds 100%"], ["no layer’s outputs"]),
        (certificate(bound=None), ["nothing bounds the drift"], ["no layer’s outputs", "exceeds"]),
        (certificate(cast=0.05), ["After rounding", "the largest is 5.0%"], []),
        (certificate(unseen=False), ["120 retained pictures"], ["never saw"]),
        (certificate(drift=0), ["more than 0%"], []),
        (certificate(drift=1e-8), ["more than &lt; 0.0001%"], ["more than 0%"]),
    ],
)
def test_sentences_follow_the_certificate(tmp_path: Path, found: Any, says: list[str], says_not: list[str]) -> None:
    section = " ".join(
        re.findall(r"<li>(.*?)</li>", drift_section(page_of(make_run(tmp_path / "run", certified(found)))))
    )
    assert all(words in section for words in says)
    assert not any(words in section for words in says_not)


@pytest.mark.usefixtures("drawings")
def test_of_many_layers_the_figure_shows_the_ones_that_drift_most(tmp_path: Path) -> None:
    layers = {f"model.blocks.{i}.mlp.fc1.weight": {"drift": i / 1000} for i in range(90)}
    directory = make_run(tmp_path / "run", certified({"layers": layers}))
    section = drift_section(page_of(directory))
    assert section.count("<code title=") == 90
    assert "<details>" in section
    assert "The 40 layers with the largest drift, of 90" in section
    described = (directory / "figures" / "certificate-unlearned-layers.svg").read_text().split("</desc>")[0]
    assert [f"blocks.{i}.mlp" in described for i in (0, 49, 50, 89)] == [False, False, True, True]
