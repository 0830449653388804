"""The literal table of methods. Adding one: a file, a line here, a page in docs/methods."""

from unsee.methods.ascent import GradientAscent, GradientDifference
from unsee.methods.base import DirectMethod, FeatureMethod, Method, OutputMethod, Plan
from unsee.methods.cvf import ContrastiveVisualForgetting
from unsee.methods.direct import DirectForgetting
from unsee.methods.features import FeatureStudy
from unsee.methods.nscvf import NullSpaceConstrainedForgetting

METHODS: dict[str, type[Method]] = {
    "nscvf": NullSpaceConstrainedForgetting,
    "nscvf-direct": DirectForgetting,
    "cvf": ContrastiveVisualForgetting,
    "ga": GradientAscent,
    "graddiff": GradientDifference,
}

__all__ = ["METHODS", "DirectMethod", "FeatureMethod", "FeatureStudy", "Method", "OutputMethod", "Plan"]
