"""Where a model's parts live, and how to load and feed it."""

from transformers.utils import logging

from unsee.progress import console

if not console.is_terminal:
    logging.disable_progress_bar()  # transformers draws its bars even into files
