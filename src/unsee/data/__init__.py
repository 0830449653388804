"""Questions, pictures and where they come from."""

from unsee.data.examples import Example, ImageSource, Split, UnlearnData

__all__ = ["Example", "ImageSource", "Split", "UnlearnData"]
