"""What a training method is: which children a step trains, on what, by which loss, and what it leaves behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import Console
from torch import Tensor

from emqdeploy.format.child import Child
from emqdeploy.options import plain_values, settle
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.dynamics import FeatureTap
from emqdeploy.training.run import RunDirectory
from emqdeploy.training.settings import CommonOptions
from emqdeploy.training.steps import Indices, Step


@dataclass(frozen=True)
class MethodOptions:
    """Options of a method; a subclass per method, with fields made by `emqdeploy.options.option`.

    Attributes:
        name: in `METHODS`.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Checks every value."""
        settle(self)

    def check(self, common: CommonOptions) -> None:
        """Raises for common options that the method cannot work with."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for `method_options`."""
        return {"name": self.name, **plain_values(self)}


@dataclass(frozen=True)
class NetworkPlan:
    """One network that a method trains.

    Attributes:
        folder: of its files, inside the run's; empty for the only network of a run.
        trained: the children that it trains.
        unseen: those that the network has as well.
    """

    folder: str
    trained: tuple[Child, ...]
    unseen: tuple[Child, ...]


@dataclass(frozen=True)
class Setting:
    """What a method works with.

    Attributes:
        common: options of the run.
        network: with initialised clips, on the training device; it knows its trained and unseen children.
        source: training images.
        classes: outputs of the network.
        run: where files go.
    """

    common: CommonOptions
    network: MultiBitNetwork
    source: ImageSource
    classes: int
    run: RunDirectory


class Method(ABC):
    """Trains one network; the loop asks it what to do. `length`, `plan` and `losses` are every method's own.

    Args:
        options: its own.
        setting: what it works with.
    """

    Options: ClassVar[type[MethodOptions]]

    competes: ClassVar[bool] = True
    """Whether weights that training starts from may win over every epoch; not where its child is still to be found."""

    features: FeatureTap | None = None
    """Where penultimate features are read, for a method that asks for them."""

    def __init__(self, options: Any, setting: Setting) -> None:
        self.options = options
        self.setting = setting

    @classmethod
    def networks(cls, options: Any, common: CommonOptions) -> list[NetworkPlan]:
        """Which children share a network: all of them, and those between come for free where codes nest."""
        return [NetworkPlan("", common.trained, common.between if common.nested and common.quantizer.between else ())]

    @property
    def apart(self) -> bool:
        """Whether processes can train it on images of their own: all that it keeps are the learned parameters."""
        return False

    # --- the course of training ---

    @abstractmethod
    def length(self, epoch: int) -> int:
        """How many steps an epoch has, known before it begins."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before an epoch, not where one is resumed in the middle."""

    @abstractmethod
    def plan(self, epoch: int) -> Sequence[Step]:
        """The steps of an epoch, its images fixed, because they are decoded ahead; rebuilt the same after a resume."""

    def next_step(self, planned: Step) -> Step:
        """The step to run now; asked after the update before, so that its children may depend on what was learned."""
        return planned

    def phase(self, epoch: int) -> str:
        """What an epoch is called in the metrics."""
        return "train"

    def ready(self, epoch: int) -> bool:
        """Whether the children are worth a validation after an epoch; after the last one they always are."""
        return True

    # --- one step ---

    @abstractmethod
    def losses(self, child: Child, logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Loss per image ``(B,)`` of logits ``(B, classes)`` for the images ``indices``."""

    def cost(self, child: Child) -> Tensor | None:
        """What is added to the mean loss of a child's pass, with its gradient."""
        return None

    def parameters(self) -> list[dict[str, Any]]:
        """Learned parameters beside the network's: ``{"params": [...], "lr_scale": 1.0, "weight_decay": 0.0}``.

        The learning rate is ``lr_scale`` times the run's.
        """
        return []

    def after_update(self) -> None:
        """Called after every update of the weights."""

    def remembers(self, epoch: int) -> bool:
        """Whether `remember` wants to be called."""
        return False

    def remember(self, child: Child, indices: Indices, logits: Tensor, features: Tensor | None) -> None:
        """Told what the whole batch said at a child: a trained one, one that was drawn, or the float network."""

    # --- the end ---

    def finish(self, console: Console) -> int:
        """A stage after the last epoch, in the best weights; returns the images that went forward and backward."""
        return 0

    def leaves(self) -> tuple[Child, ...]:
        """The children to store, trained and unseen."""
        return self.setting.network.known

    def state(self) -> dict[str, Any]:
        """What continuing exactly needs beside network and parameters, as tensors and plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""


METHODS: Registry[type[Method]] = Registry("method")


def method_options(values: Mapping[str, Any]) -> MethodOptions:
    """The inverse of `MethodOptions.to_dict`."""
    rest = {key: value for key, value in values.items() if key != "name"}
    return METHODS[values["name"]].Options(**rest)
