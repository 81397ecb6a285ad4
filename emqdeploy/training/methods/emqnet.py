"""EMQNet (arXiv 2510.20673): children take turns on batches of their own, perhaps on coresets of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.options import option
from emqdeploy.training.coreset import SELECTIONS, SHARINGS, Coreset, choose_coresets, coreset_size
from emqdeploy.training.dynamics import SHARED, WINDOW, Dynamics, FeatureTap
from emqdeploy.training.methods.base import METHODS, Setting
from emqdeploy.training.methods.planned import Planned, PlannedOptions
from emqdeploy.training.resampling import RESAMPLINGS
from emqdeploy.training.run import RunDirectory
from emqdeploy.training.scores import SCORES
from emqdeploy.training.settings import entry
from emqdeploy.training.steps import STEP_PLANS, Indices

_coreset = partial(option, panel="Coresets")


@dataclass(frozen=True)
class EMQNetOptions(PlannedOptions):
    """How many images every child keeps, and which."""

    name = "emqnet"
    prune_rate: float = _coreset(0.0, "Share of the images that each child leaves out, 0 to below 1.")
    score: str = _coreset("el2n", "random, entropy, forgetting, el2n, grand, moderate or tdds.", parse=entry(SCORES))
    selection: str = _coreset(
        "sampled", "How the score picks: sampled (in proportion), top, balanced, middle.", parse=entry(SELECTIONS)
    )
    sharing: str = _coreset(
        "bits",
        "Scores and subsets per child (bits), shared scores (scores), one subset for all (all).",
        parse=entry(SHARINGS),
    )
    score_epochs: int | None = _coreset(
        None, "Epochs on all images that record the score; a sixteenth of all by default.", least=1
    )
    score_plan: str | None = _coreset(
        None,
        "Step plan of the score phase: bit-wise (interleaved), batch-wise (joint), rotating.",
        parse=entry(STEP_PLANS),
    )
    resample_every: int = _coreset(0, "Epochs between choosing anew; 0 keeps the first choice.", least=0)
    resample_from: str = _coreset(
        "record",
        "What choosing anew goes by: the record that training keeps, or a forward-only probe.",
        parse=entry(RESAMPLINGS),
    )
    unbiased: bool = _coreset(False, "Weigh losses so that the gradient is that of all images (sampled only).")
    scores_from: str | None = _coreset(
        None, "Take the scores of this run instead of a score phase.", parse=os.path.abspath
    )

    def __post_init__(self) -> None:
        """Checks that the plan lets children have coresets of their own."""
        super().__post_init__()
        if not 0 <= self.prune_rate < 1:
            raise UsageError(f"--prune-rate is {self.prune_rate}; allowed: 0 (keep all) up to, not including, 1")
        if self.prune_rate > 0 and STEP_PLANS[self.step_plan].one_batch and not SHARINGS[self.sharing].subset:
            raise UsageError(
                f"--step-plan {self.step_plan} gives all children the same batches, so they cannot have coresets of"
                " their own; add --sharing all, or use --step-plan interleaved"
            )
        if self.unbiased and self.selection != "sampled":
            raise UsageError(f"--unbiased needs odds, which --selection {self.selection} has not; use sampled")

    def full_epochs(self, epochs: int) -> int:
        """Epochs on all images: the score phase, or every epoch where nothing is pruned."""
        if self.prune_rate == 0:
            return epochs
        if self.scores_from is not None:
            return 0
        wanted = max(1, epochs // 16) if self.score_epochs is None else self.score_epochs
        return min(wanted, epochs)


@METHODS.register("emqnet")
class EMQNet(Planned):
    """Trains on all images, then, with a prune rate, on the coreset of each child."""

    Options = EMQNetOptions
    options: EMQNetOptions

    def __init__(self, options: EMQNetOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        self.full_epochs = options.full_epochs(setting.common.epochs)
        self.coresets: dict[Child, Coreset] = {}
        self.dynamics: Dynamics | None = None
        self.recording = False
        if options.prune_rate > 0:
            self.keep = coreset_size(len(setting.source), options.prune_rate, setting.common.batch_size)
            self._open_record()

    def _open_record(self) -> None:
        options, setting, width = self.options, self.setting, 0
        network = setting.network
        if SCORES[options.score].needs_features:
            last = [layer for layer in network.layers.values() if isinstance(layer, nn.Linear)][-1]
            self.features, width = FeatureTap(last), last.in_features
        shared = SHARINGS[options.sharing].record
        keys = (SHARED,) if shared else tuple(child.name for child in network.trained)
        window = max(self.full_epochs, WINDOW if options.resample_every else 1)
        self.dynamics = Dynamics(keys, len(setting.source), setting.classes, window, width)

    def begin_epoch(self, epoch: int) -> None:
        """Chooses coresets where it is time to."""
        super().begin_epoch(epoch)
        if self.dynamics is None:
            return
        options, setting = self.options, self.setting
        since, every = epoch - self.full_epochs, options.resample_every
        anew = bool(every) and since > 0 and since % every == 0
        if anew:
            RESAMPLINGS[options.resample_from](setting.network, setting.source, self.dynamics, self.features)
        if since == 0:
            if options.scores_from is not None:
                self.dynamics.restore(RunDirectory.load_scores(options.scores_from))
            setting.run.save_scores(self.dynamics.state())
        if since == 0 or anew:
            labels, children = setting.source.labels.cpu().numpy(), setting.network.trained
            ways, seed = (options.score, options.selection, options.sharing), (setting.common.seed, epoch)
            self.coresets = choose_coresets(self.dynamics, labels, self.keep, *ways, children, seed)
        # What passes say of images is of use to the score phase, and to choosing anew by the record.
        self.recording = since < 0 or (every > 0 and options.resample_from == "record")
        if self.recording:
            self.dynamics.open_epoch()

    def _scores(self, epoch: int) -> bool:
        """Whether an epoch belongs to the score phase."""
        return self.dynamics is not None and epoch < self.full_epochs

    def phase(self, epoch: int) -> str:
        """``score`` while all images are scored."""
        return "score" if self._scores(epoch) else super().phase(epoch)

    def step_plan(self, epoch: int) -> str:
        """The score phase may have a plan of its own."""
        return (self.options.score_plan if self._scores(epoch) else None) or super().step_plan(epoch)

    def subsets(self, epoch: int) -> Mapping[Child, Indices]:
        """The coresets after the score phase."""
        if epoch < self.full_epochs:
            return super().subsets(epoch)
        return {child: core.indices for child, core in self.coresets.items()}

    def sizes(self, epoch: int) -> Mapping[Child, Indices]:
        """As many images as each coreset has."""
        if epoch < self.full_epochs:
            return super().sizes(epoch)
        return dict.fromkeys(self.everything, np.arange(self.keep))

    def losses(self, child: Child, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Loss per image, weighed where the gradient is to be that of all images."""
        losses = super().losses(child, logits, labels, indices)
        core = self.coresets.get(child) if self.options.unbiased else None
        if core is None:
            return losses
        weights = core.weights()[np.searchsorted(core.indices, indices.cpu().numpy())]
        return losses * torch.from_numpy(weights).to(losses.device)

    def remembers(self, epoch: int) -> bool:
        """While scores are recorded, or for the distillation."""
        return super().remembers(epoch) or self.recording

    def remember(self, child: Child, indices: Indices, logits: Tensor, features: Tensor | None) -> None:
        """Records what a batch said."""
        super().remember(child, indices, logits, features)
        if self.dynamics is not None and self.recording:
            self.dynamics.record(child, indices, logits, features)

    def state(self) -> dict[str, Any]:
        """Coresets and record as well, by name of the child."""
        coresets = {
            child.name: {"indices": torch.from_numpy(core.indices), "odds": torch.from_numpy(core.odds)}
            for child, core in self.coresets.items()
        }
        record = None if self.dynamics is None else self.dynamics.state()
        return {**super().state(), "coresets": coresets, "dynamics": record, "recording": self.recording}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        saved, children = state["coresets"], self.setting.network.trained
        self.coresets = {
            child: Coreset(saved[child.name]["indices"].numpy(), saved[child.name]["odds"].numpy())
            for child in children
            if child.name in saved
        }
        self.recording = state["recording"]
        if self.dynamics is not None:
            self.dynamics.restore(state["dynamics"])
