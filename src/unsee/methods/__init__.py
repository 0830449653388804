"""The literal table of methods. Adding one: a file, a line here, a page in docs/methods."""

from unsee.methods.ascent import GradientAscent, GradientDifference
from unsee.methods.base import FeatureMethod, Method, OutputMethod, Plan
from unsee.methods.cvf import ContrastiveVisualForgetting
from unsee.methods.features import FeatureStudy
from unsee.methods.nscvf import NullSpaceConstrainedForgetting

METHODS: dict[str, type[Method]] = {
    "nscvf": NullSpaceConstrainedForgetting,
    "cvf": ContrastiveVisualForgetting,
    "ga": GradientAscent,
    "graddiff": GradientDifference,
}

__all__ = ["METHODS", "FeatureMethod", "FeatureStudy", "Method", "OutputMethod", "Plan"]
