"""One self-contained HTML report from the files of a run directory."""

from unsee.reporting.run import write_report

__all__ = ["write_report"]
