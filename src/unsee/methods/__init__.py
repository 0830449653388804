"""The literal table of methods. Adding one: a file, a line here, a page in docs/methods."""

from unsee.methods.ascent import GradientAscent, GradientDifference
from unsee.methods.cvf import ContrastiveVisualForgetting
from unsee.methods.divergence import DivergenceMinimisation
from unsee.methods.in_context import InContextUnlearning
from unsee.methods.manu import ModalityAwareNeuronUnlearning
from unsee.methods.mmunlearner import MMUnlearner
from unsee.methods.nscvf import NullSpaceConstrainedForgetting
from unsee.methods.nscvf_direct import DirectForgetting
from unsee.methods.parts.base import DirectMethod, DirectOutputMethod, FeatureMethod, Method, OutputMethod, Plan
from unsee.methods.parts.features import FeatureStudy
from unsee.methods.preference import NegativePreference, RefusalPreference, SimpleNegativePreference
from unsee.methods.refusal import Refusal
from unsee.methods.retain_ft import RetainFinetuning
from unsee.methods.rmu import RepresentationMisdirection
from unsee.methods.salun import SaliencyUnlearning
from unsee.methods.undial import AdjustedSelfDistillation
from unsee.methods.vgid import VisualNoiseGuidedDistillation
from unsee.methods.vgid_released import ReleasedVisualNoiseDistillation
from unsee.methods.vkd import VisualKnowledgeDistillation

METHODS: dict[str, type[Method]] = {
    "nscvf": NullSpaceConstrainedForgetting,
    "nscvf-direct": DirectForgetting,
    "cvf": ContrastiveVisualForgetting,
    "vkd": VisualKnowledgeDistillation,
    "vgid": VisualNoiseGuidedDistillation,
    "vgid-released": ReleasedVisualNoiseDistillation,
    "mmunlearner": MMUnlearner,
    "ga": GradientAscent,
    "graddiff": GradientDifference,
    "kl-min": DivergenceMinimisation,
    "npo": NegativePreference,
    "simnpo": SimpleNegativePreference,
    "idk": Refusal,
    "idk-dpo": RefusalPreference,
    "undial": AdjustedSelfDistillation,
    "rmu": RepresentationMisdirection,
    "salun": SaliencyUnlearning,
    "manu": ModalityAwareNeuronUnlearning,
    "retain-ft": RetainFinetuning,
    "in-context": InContextUnlearning,
}

__all__ = [
    "METHODS",
    "DirectMethod",
    "DirectOutputMethod",
    "FeatureMethod",
    "FeatureStudy",
    "InContextUnlearning",
    "Method",
    "OutputMethod",
    "Plan",
]
