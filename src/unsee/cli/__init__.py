"""The command line: arguments turned into one call each. No room knows it."""

from unsee.cli.app import main

__all__ = ["main"]
