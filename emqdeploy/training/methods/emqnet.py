"""EMQNet (arXiv 2510.20673): children take turns on batches of their own, perhaps on coresets of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.options import option
from emqdeploy.training.coreset import SELECTIONS, SHARINGS, Coreset, choose_coresets, coreset_size
from emqdeploy.training.dynamics import SHARED, Dynamics, FeatureTap
from emqdeploy.training.methods.base import METHODS, Setting
from emqdeploy.training.methods.planned import Planned, PlannedOptions
from emqdeploy.training.resampling import RESAMPLINGS, probe
from emqdeploy.training.run import RunDirectory
from emqdeploy.training.scores import SCORES
from emqdeploy.training.settings import CommonOptions, entry
from emqdeploy.training.steps import STEP_PLANS, Indices

_coreset = partial(option, panel="Coresets")

FLOAT_SHARE = 0.6
"""Of a run, for the float network; where it has two epochs, the children still see most images."""

_STORED = ("indices", "odds", "standing")


@dataclass(frozen=True)
class EMQNetOptions(PlannedOptions):
    """How many images every child keeps, and which."""

    name = "emqnet"
    prune_rate: float = _coreset(0.0, "Share of the images that each child leaves out, 0 to below 1.")
    score: str = _coreset(
        "el2n", "Score of the images: random, entropy, forgetting, el2n, grand, moderate or tdds.", parse=entry(SCORES)
    )
    selection: str = _coreset(
        "sampled",
        "How the score chooses images: sampled (in proportion to it), top, balanced (top of each class) or middle.",
        parse=entry(SELECTIONS),
    )
    sharing: str = _coreset(
        "bits",
        "What children share: bits (nothing), scores (one score, but a subset each) or all (one subset).",
        parse=entry(SHARINGS),
    )
    score_epochs: int | None = _coreset(
        None,
        "Epochs on all images before coresets; by default a sixteenth of the run, or what the score needs.",
        least=1,
    )
    score_from: str = _coreset(
        "record",
        "Source of the first scores: record (training in those epochs), or a forward-only pass after them by probe"
        " (each child) or widest (one child for all).",
        parse=entry(RESAMPLINGS),
    )
    score_plan: str | None = _coreset(
        None,
        "Step plan of the score phase: interleaved (bit-wise), joint (batch-wise), rotating or any other.",
        parse=entry(STEP_PLANS),
    )
    resample_every: int = _coreset(0, "Epochs between new choices of images; 0 keeps the first choice.", least=0)
    resample_from: str = _coreset(
        "record",
        "Source of the scores for new choices: record (training itself), probe or widest.",
        parse=entry(RESAMPLINGS),
    )
    unbiased: bool = _coreset(
        False, "Weigh losses so that the gradient is that of all images (with --selection sampled only)."
    )
    weigh_by_score: bool = _coreset(
        False, "Multiply a batch's loss by the mean score of its images, scaled to 0 to 1, as TDDS does."
    )
    scores_from: str | None = _coreset(None, "Run whose scores to use instead of a score phase.", parse=os.path.abspath)

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
        if self.unbiased and self.weigh_by_score:
            raise UsageError("--unbiased and --weigh-by-score both weigh the losses; leave one of them out")

    def check(self, common: CommonOptions) -> None:
        """Raises where the score phase is too short for the score, or asks for what a probe cannot say."""
        super().check(common)
        score, given = SCORES[self.score], self.full_epochs(common.epochs)
        if common.mixup and self.prune_rate > 0:
            raise UsageError("--prune-rate chooses among single images, and --mixup trains on sums; leave one out")
        if self.prune_rate == 0 or self.scores_from is not None:
            return
        if RESAMPLINGS[self.score_from].asked is None:
            if given < score.epochs:
                raise UsageError(
                    f"--score {self.score} needs {score.epochs} epochs on all images, and there are {given}; give"
                    f" --score-epochs {score.epochs} and as many --epochs, or use --score el2n"
                )
        elif score.of_course:
            raise UsageError(
                f"--score {self.score} goes by the course of training, of which --score-from {self.score_from} sees one"
                " moment; use --score-from record, or --score el2n"
            )

    def usual_float_first(self, common: CommonOptions) -> float:
        """Most of the run, unless float weights were given, or coresets or another step plan need the time."""
        fresh = common.pretrained is None and not common.model.endswith(".onnx") and common.epochs > 1
        plain = self.prune_rate == 0 and self.step_plan == "interleaved"
        return FLOAT_SHARE if fresh and plain and any(child != FLOAT for child in common.trained) else 0.0

    @property
    def one_record(self) -> bool:
        """Whether all children are scored alike."""
        sources = [self.score_from, *([self.resample_from] if self.resample_every else [])]
        return SHARINGS[self.sharing].record or any(RESAMPLINGS[source].shared for source in sources)

    def full_epochs(self, epochs: int) -> int:
        """Epochs on all images: the score phase, or every epoch where nothing is pruned."""
        if self.prune_rate == 0:
            return epochs
        if self.scores_from is not None:
            return 0
        wanted = max(SCORES[self.score].epochs, epochs // 16) if self.score_epochs is None else self.score_epochs
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
        self.tap: FeatureTap | None = None
        self.recording = False
        if options.prune_rate > 0:
            self.keep = coreset_size(len(setting.source), options.prune_rate, setting.common.batch_size)
            self.dynamics = self._open_record()
            if self._records(0) and self.full_epochs:
                self._check_coverage(SCORES[options.score].epochs)
            self._check_probes()

    @property
    def apart(self) -> bool:
        """Where nothing is kept of single images."""
        return self.dynamics is None and not super().remembers(0)

    def _open_record(self) -> Dynamics:
        options, setting, width = self.options, self.setting, 0
        network = setting.network
        if SCORES[options.score].needs_features:
            last = [layer for layer in network.layers.values() if isinstance(layer, nn.Linear)][-1]
            self.tap, width = FeatureTap(last), last.in_features
            # Passes gather features only where an epoch records them.
            self.features = self.tap if self._records(0) or self._records(self.full_epochs) else None
        keys = (SHARED,) if options.one_record else tuple(child.name for child in network.trained)
        return Dynamics(options.score, keys, setting.source.labels.cpu().numpy(), setting.classes, width)

    def _check_coverage(self, needed: int) -> None:
        """Raises where the plan of the score phase shows a child less of the images than its score needs."""
        times = {key: np.zeros(len(self.setting.source), np.int64) for key in self._dynamics.records}
        trained = set(self.setting.network.trained)
        for step in chain.from_iterable(map(self.plan, range(self.full_epochs))):
            for child in trained.intersection(step.children):
                times[self._dynamics.key(child)][step.indices] += 1
        for key, seen in times.items():
            missing = int((seen < needed).sum())
            if missing > self.full_epochs:  # each epoch may drop a last batch of one image
                options = self.options
                plan = f"--step-plan {options.score_plan or options.step_plan}"
                raise UsageError(
                    f"{f'--float-first {options.float_first}' if options.float_first else plan} shows"
                    f" {'the children' if key == SHARED else f'child {key}'} {missing:,} of {len(seen):,} images less"
                    f" than {needed} times in {self.full_epochs} epochs of scoring; use --score-plan interleaved, more"
                    " --score-epochs, --sharing scores or --score-from widest"
                )

    def _check_probes(self) -> None:
        """Raises where children that had no steps would be asked, each for itself."""
        options, first = self.options, self.full_epochs
        asked = [] if options.scores_from else [(first, options.score_from)]
        asked += [(first + options.resample_every, options.resample_from)] if options.resample_every else []
        for epoch, source in asked:
            if RESAMPLINGS[source].asked is not None and not options.one_record and not self._began(epoch):
                raise UsageError(
                    f"--float-first {options.float_first} leaves the children no step before epoch {epoch}, in which"
                    f" {source} asks each of them; use --score-from widest, which asks the float network until then"
                )

    @property
    def _dynamics(self) -> Dynamics:
        assert self.dynamics is not None
        return self.dynamics

    def _records(self, epoch: int) -> bool:
        """Whether what the passes of an epoch say is of use to a choice of coresets."""
        options = self.options
        if epoch < self.full_epochs:
            return RESAMPLINGS[options.score_from].asked is None
        return options.resample_every > 0 and RESAMPLINGS[options.resample_from].asked is None

    def begin_epoch(self, epoch: int) -> None:
        """Chooses coresets where it is time to."""
        super().begin_epoch(epoch)
        if self.dynamics is None:
            return
        options, setting, since = self.options, self.setting, epoch - self.full_epochs
        anew = options.resample_every > 0 and since > 0 and since % options.resample_every == 0
        if since == 0 and options.scores_from is not None:
            self.dynamics.restore(RunDirectory.load_scores(options.scores_from))
        elif since == 0:
            self._ask(options.score_from, epoch, SCORES[options.score].epochs)
        elif anew:
            score = SCORES[options.score]
            self._ask(options.resample_from, epoch, 1 if score.of_course else score.epochs)
        if since == 0:
            setting.run.save_scores(self.dynamics.state())
        if since == 0 or anew:
            ways, seed = (options.selection, options.sharing), (setting.common.seed, epoch)
            children = setting.network.trained
            self.cleaning.judge()
            how = (options.unbiased, self.cleaning.believed())
            self.coresets = choose_coresets(self.dynamics, self.keep, *ways, children, seed, *how)
        self.recording = self._records(epoch)
        if self.recording:
            self.dynamics.open_epoch()

    def _ask(self, source: str, epoch: int, passes: int) -> None:
        """Probes the network where a source of scores does; before the children had steps, the float network."""
        asked, setting = RESAMPLINGS[source].asked, self.setting
        if asked is not None:
            children = asked(setting.network.trained) if self._began(epoch) else (FLOAT,)
            probe(setting.network, setting.source, self._dynamics, self.tap, children, passes)

    def _began(self, epoch: int) -> bool:
        """Whether the children had steps before an epoch."""
        return self.options.float_first == 0 or self.ready(epoch - 1)

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
        """Loss per image, weighed where the gradient is to be that of all images, or that of important ones more."""
        losses = super().losses(child, logits, labels, indices)
        core, options = self.coresets.get(child), self.options
        if core is None or not (options.unbiased or options.weigh_by_score):
            return losses
        places = np.searchsorted(core.indices, indices.cpu().numpy())
        if options.weigh_by_score:
            return losses * float(core.standing[places].mean())
        return losses * torch.from_numpy(core.weights()[places]).to(losses.device)

    def remembers(self, epoch: int) -> bool:
        """While scores are recorded, or for the distillation."""
        return super().remembers(epoch) or self.recording

    def remember(self, child: Child, indices: Indices, logits: Tensor, features: Tensor | None) -> None:
        """Records what a batch said."""
        super().remember(child, indices, logits, features)
        if self.dynamics is not None and self.recording and child in self.everything:
            self.dynamics.record(child, indices, logits, features)

    def state(self) -> dict[str, Any]:
        """Coresets and record as well, by name of the child."""
        coresets = {
            child.name: {name: torch.from_numpy(getattr(core, name)) for name in _STORED}
            for child, core in self.coresets.items()
        }
        record = None if self.dynamics is None else self.dynamics.state()
        return {**super().state(), "coresets": coresets, "dynamics": record, "recording": self.recording}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        if self.dynamics is not None:  # which says in a sentence where a run is of an earlier version
            self.dynamics.restore(state["dynamics"])
        saved, children = state["coresets"], self.setting.network.trained
        self.coresets = {
            child: Coreset(*(saved[child.name][name].numpy() for name in _STORED))
            for child in children
            if child.name in saved
        }
        self.recording = state["recording"]
