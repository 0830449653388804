"""The field's benchmarks in small: each one's own files, filled with generated people.

They let whole protocols run offline in seconds. Formats are those of the published data; every word is ours.
"""

from __future__ import annotations

from unsee.lab.miniatures.clear import write_clear
from unsee.lab.miniatures.fiubench import write_fiubench
from unsee.lab.miniatures.mllmu import write_mllmu
from unsee.lab.miniatures.population import Miniature
from unsee.lab.miniatures.umu import write_umu

__all__ = ["MINIATURES"]

MINIATURES: dict[str, Miniature] = {
    "mllmu": Miniature(write_mllmu, forget=(5, 10, 15)),
    "clear": Miniature(write_clear, forget=(1, 5, 10)),
    "umu": Miniature(write_umu, forget=(5, 10, 15)),
    "fiubench": Miniature(write_fiubench, forget=(1, 5, 10), celebrities=0),
}
