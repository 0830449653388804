"""What must stay is kept as the first model of a line of edits saw it, not as the last one left it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from unsee.errors import BadInput
from unsee.methods import FeatureStudy
from unsee.methods.parts.features import POSITIONS, Pictures
from unsee.models.anatomy import VisualModule
from unsee.models.loading import Loaded, load_visual
from unsee.models.packed import pack


@dataclass(frozen=True)
class DriftReference:
    """The visual module of the first model of a line of edits: what drift is counted from.

    Every edit moves what must stay a little. Kept where the edit before left it, these moves add up, request after
    request; kept where the first model had it, each edit takes the earlier moves back as far as its null space lets it.
    Measured in docs/sequence.md. Our choice.
    """

    visual: VisualModule
    cut: int

    @staticmethod
    def load(first: str, loaded: Loaded, last_blocks: int) -> DriftReference:
        """Read the first model.

        Raises:
            BadInput: it is not what `loaded` was made from: it differs below the edited blocks, or in shape.
        """
        visual = load_visual(first).visual
        cut = len(loaded.visual.blocks) - last_blocks
        tail = {id(p) for module in loaded.visual.tail(last_blocks) for p in module.parameters()}
        theirs = visual.named_parameters()
        for name, own in loaded.visual.named_parameters().items():
            other = theirs.get(name)
            if other is None or other.shape != own.shape or not (id(own) in tail or torch.equal(own, other)):
                raise BadInput(
                    f"--first {first}: '{name}' is not that of {loaded.folder.path}, though no edit of the last "
                    f"{last_blocks} blocks changes it; give the model that the line of edits began with"
                )
        return DriftReference(visual, cut)

    @torch.no_grad()
    def keeping(self, study: FeatureStudy) -> FeatureStudy:
        """`study` with the visual tokens of retained pictures as the first model has them; of subjects that earlier
        edits took away (`study.earlier`) they stay as the last model has them.
        """
        retain = study.retain
        parts = retain.hidden.split(POSITIONS)
        first = pack([self.visual.leave(self.visual.run(part, start=self.cut)) for part in parts])
        earlier = torch.isin(retain.subject, torch.tensor(study.earlier, device=retain.subject.device))
        chosen = torch.arange(len(retain)) + len(retain) * earlier.cpu()
        tokens = pack([first, retain.tokens])[chosen]
        return dataclasses.replace(study, retain=Pictures(retain.hidden, tokens, retain.subject))
