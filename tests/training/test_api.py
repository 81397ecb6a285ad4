"""Training end to end on real images: reproducible, resumable to the bit, and what is stored is what was trained."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console

from emqdeploy.data import load_dataset
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.quant.deploy import freeze
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training import api, material
from emqdeploy.training.api import TrainResult, train
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.methods import Method
from emqdeploy.training.optimizers import parameter_groups
from emqdeploy.training.recipes import resolve, stored_config

SMALL: dict[str, Any] = {
    "limit": 220,
    "epochs": 3,
    "batch_size": 32,
    "bits": (1, 4),
    "prune_rate": 0.5,
    "score_epochs": 2,
    "seed": 3,
}
PLAIN: dict[str, Any] = {"prune_rate": None, "score_epochs": None}
MIXED: dict[str, Any] = {
    "mixed": {
        "weights": {"*": 4, "stage1.0.conv1": 8, "stage3.0.conv2": 2},
        "activations": {"*": 8, "stage2.0.conv2": 4},
    }
}


def _train(out: Path, resume: bool = False, **changes: Any) -> TrainResult:
    report_test = changes.pop("report_test", True)
    config = resolve(changes.pop("recipe", None), None, {**SMALL, **changes})
    return train(config, out, resume, Console(file=io.StringIO()), report_test)


def _named(values: dict[Child, float]) -> dict[str, float]:
    return {child.name: value for child, value in values.items()}


def _after_update(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Lets something happen after an update of the weights."""
    updates = 0

    def after_update(self: Method) -> None:
        nonlocal updates
        updates += 1
        if updates == number:
            act()

    monkeypatch.setattr(Method, "after_update", after_update)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """One uninterrupted run."""
    return _train(tmp_path_factory.mktemp("runs") / "whole")


def test_run_directory_is_complete(run: TrainResult) -> None:
    """Everything the README promises lies in the run directory."""
    names = {path.name for path in run.run.iterdir()}
    assert names == {"config.toml", "metrics.jsonl", "state.pt", "scores.pt", "latent.safetensors", "model.emq"}
    lines = [json.loads(line) for line in (run.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line["phase"] for line in lines] == ["score", "score", "train"]
    assert set(lines[0]["validation_accuracy"]) == set(lines[0]["loss"]) == {"1", "4"}


def test_passes_count_what_was_pruned(run: TrainResult) -> None:
    """198 training images, two children: two full epochs and one on half of them."""
    assert run.sample_passes == 2 * (2 * 198 + 99)


def test_checkpoint_holds_unseen_children(run: TrainResult) -> None:
    """Children between the trained ones come with the file, and their accuracy was measured."""
    checkpoint = load_checkpoint(run.checkpoints[0])
    assert [child.name for child in checkpoint.network.children] == ["1", "2", "3", "4"]
    assert set(checkpoint.card.trained) == {"1", "4"}
    assert set(_named(run.accuracy)) == set(checkpoint.card.accuracy) == {"1", "2", "3", "4"}


def test_the_card_says_what_made_the_network(run: TrainResult) -> None:
    """Data, structure, every option and where it came from: what a person and a rebuild need."""
    card = load_checkpoint(run.checkpoints[0]).card
    assert (card.model, card.data.name, card.input_shape, len(card.classes)) == ("resnet8", "digits", (1, 8, 8), 10)
    assert card.method == "emqnet"
    assert card.recipe == json.loads(json.dumps(stored_config(run.run).to_dict()))
    assert [child["name"] for child in card.structure["unseen"]] == ["2", "3"]
    assert card.provenance["sample_passes"] == run.sample_passes


def test_statistics_come_from_images_as_training_sees_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A network that learned behind statistics of augmented images is deployed with such; others end elsewhere."""
    config = resolve(None, None, {"limit": 200, "epochs": 1, "bits": "8", "augment": "shift1", "float_first": 0})
    console = Console(file=io.StringIO())
    first = load_checkpoint(train(config, tmp_path / "first", console=console).checkpoints[0]).network

    def plain(source: ImageSource, count: int, seed: int) -> list[torch.Tensor]:
        return [source.plain(np.arange(min(count, len(source))))]

    monkeypatch.setattr(api, "as_trained", plain)
    other = load_checkpoint(train(config, tmp_path / "other", console=console).checkpoints[0]).network
    eight = Child.of(8)
    assert all((layer.codes == other.layers[name].codes).all() for name, layer in first.layers.items())
    assert any((layer.biases[eight] != other.layers[name].biases[eight]).any() for name, layer in first.layers.items())


def test_same_seed_same_file(run: TrainResult, tmp_path: Path) -> None:
    """Training is deterministic on the CPU: codes, grids and biases are equal, and another seed gives others."""
    again, other = _train(tmp_path / "again"), _train(tmp_path / "other", seed=4)
    arrays = [_arrays(result, "4") for result in (run, again, other)]
    assert all((arrays[0][name] == arrays[1][name]).all() for name in arrays[0])
    assert any((arrays[0][name] != arrays[2][name]).any() for name in arrays[0])


def _arrays(result: TrainResult, child: str) -> dict[str, Any]:
    network = load_checkpoint(result.checkpoints[0]).network
    return network.initializers(network.find(child))


@pytest.mark.parametrize("stop_after", [3, 14, 27])
def test_resumed_run_ends_with_the_same_weights(
    run: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Stopped in the score phase, at an epoch's end and on the coreset: bit for bit the uninterrupted run."""
    _after_update(monkeypatch, stop_after, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(
        EmqError, match=f"stopped after step {stop_after} of .* continue with: emqdeploy train --resume"
    ):
        _train(tmp_path / "part")
    monkeypatch.undo()
    resumed = _train(tmp_path / "part", resume=True)
    assert resumed.sample_passes == run.sample_passes
    name = "latent.safetensors"
    assert (resumed.run / name).read_bytes() == (run.run / name).read_bytes()
    whole, parts = _arrays(run, "1"), _arrays(resumed, "1")
    assert all((whole[name] == parts[name]).all() for name in whole)
    epochs = [json.loads(line)["epoch"] for line in (resumed.run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2]


def test_run_directory_is_never_overwritten(run: TrainResult) -> None:
    """A second run into the same directory would lose the first."""
    with pytest.raises(UsageError, match="already holds a run; continue it with --resume"):
        _train(run.run)


def test_what_is_refused_writes_nothing(tmp_path: Path) -> None:
    """A coreset below one batch, or a child of an unknown layer, is said before the first epoch."""
    with pytest.raises(UsageError, match="keeps 2 of 198 images, fewer than a batch of 32"):
        _train(tmp_path / "run", prune_rate=0.99)
    unknown = {"odd": {"weights": {"conv99": 4}}}
    with pytest.raises(UsageError, match="child 'odd' names layer 'conv99' in its weights, which the network does not"):
        _train(tmp_path / "run", children=unknown)
    pinned = {"odd": {"weights": {"conv1": 4}}}
    with pytest.raises(UsageError, match="child 'odd' gives layer 'conv1' 4 bits, but it stays at 8 bits"):
        _train(tmp_path / "run", children=pinned)
    assert not (tmp_path / "run" / "config.toml").exists()
    assert _train(tmp_path / "run", epochs=1, **PLAIN).checkpoints


def test_rounded_codes_get_a_file_each(tmp_path: Path) -> None:
    """DoReFa's codes do not nest, so no master can serve two weight widths; children of one width share a file."""
    options = {**PLAIN, "epochs": 1, "limit": 120, "partition": "dorefa", "correction": "none"}
    result = _train(tmp_path / "run", bits="1,4,4a4", children=MIXED, **options)
    assert [path.name for path in result.checkpoints] == ["model-w1.emq", "model-w4.emq", "model-mixed.emq"]
    stored = [[child.name for child in load_checkpoint(path).network.children] for path in result.checkpoints]
    assert stored == [["1"], ["4a4", "4"], ["mixed"]]


def test_float_network_trains_alike(tmp_path: Path) -> None:
    """32 bits is the float network that accuracy claims compare with."""
    result = _train(tmp_path / "run", bits=(32,), epochs=1, **PLAIN)
    assert set(result.accuracy) == {FLOAT}
    assert result.checkpoints == []


def test_diverging_loss_names_child_and_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN must stop training, not spoil the checkpoint."""
    monkeypatch.setattr(CLASSIFICATION, "losses", lambda logits, labels: logits.sum(1) * torch.nan, raising=False)
    with pytest.raises(EmqError, match=r"the loss became nan at child \d in step 0"):
        _train(tmp_path / "run")


def test_a_class_without_a_training_image_still_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score phase records as many outputs as the network has, not as many as the labels happen to name."""

    def without_nines(*arguments: Any, **options: Any) -> Any:
        dataset = load_dataset(*arguments, **options)
        return replace(dataset, train=dataset.train.subset(dataset.train.labels != 9))

    monkeypatch.setattr(material, "load_dataset", without_nines)
    result = _train(tmp_path / "run")
    assert set(_named(result.accuracy)) == {"1", "2", "3", "4"}


PRUNED = {"prune_rate": 0.5, "score_epochs": 2}
METHODS: dict[str, dict[str, Any]] = {
    "any-precision": {"recipe": "any-precision", "calibrate_epochs": 1, "partition": "floor", "correction": "exact"},
    "adabits": {"recipe": "adabits"},
    "sandwich": {"recipe": "truncquant", "norm": "shared-affine", "calibrate_epochs": 0, "step_plan": "sandwich",
                 "distill": "soft", "bits": (1, 2, 4)},
    "mixed": {"step_plan": "mixed", "norm": "transitional", "children": MIXED},
    "cached": {"distill": "cached", **PRUNED},
    "resampled": {**PRUNED, "resample_every": 1, "unbiased": True, "score_epochs": 1},
    "probed": {**PRUNED, "resample_every": 1, "resample_from": "probe", "score": "grand", "score_epochs": 1},
    "probed at one width": {**PRUNED, "score_from": "widest", "score": "moderate", "score_epochs": 1},
    "shared scores": {**PRUNED, "sharing": "scores", "score_plan": "rotating", "score": "tdds", "score_epochs": 3,
                      "epochs": 4, "weigh_by_score": True},
    "accumulated": {"accumulate": 3, "optimizer": "adam", "lr": 1e-3, "schedule": "step"},
    "bf16": {"amp": "bf16", "channels_last": True},
    "lsq": {"quantizer": "lsq", "bits": "2,4,4a4"},
    "several activations": {**PRUNED, "bits": "4,4a4,2a2", "score_epochs": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_trains_and_resumes_exactly(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each registered option ends in a checkpoint, and dying in the middle of an epoch changes nothing."""
    changes = {**PLAIN, "limit": 120, "epochs": 2, "report_test": False, **METHODS[name]}
    whole = _train(tmp_path / "whole", **changes)

    def die() -> None:
        raise RuntimeError("killed")

    _after_update(monkeypatch, 2 if "accumulate" in changes else 6, die)
    with pytest.raises(RuntimeError, match="killed"):
        _train(tmp_path / "part", **changes, save_every=0)
    monkeypatch.undo()
    state = torch.load(tmp_path / "part" / "state.pt", weights_only=True)
    assert state["progress"]["step_in_epoch"] > 0
    resumed = _train(tmp_path / "part", resume=True, **changes, save_every=0)
    assert resumed.accuracy == whole.accuracy
    assert (tmp_path / "part" / "latent.safetensors").read_bytes() == (
        tmp_path / "whole" / "latent.safetensors"
    ).read_bytes()


def test_children_with_widths_per_layer_are_trained_and_stored(tmp_path: Path) -> None:
    """Each child has losses, accuracy and grids of its own; a layer has the width that the child gives it."""
    result = _train(tmp_path / "run", bits="8,4,2a4", children=MIXED, step_plan="mixed", epochs=1, **PLAIN)
    line = json.loads((result.run / "metrics.jsonl").read_text())
    assert set(line["loss"]) == {"8", "4", "2a4", "mixed", "drawn"}
    assert set(line["validation_accuracy"]) == {"8", "4", "2a4", "mixed"}
    network = load_checkpoint(result.checkpoints[0]).network
    assert [child.name for child in network.children] == ["2a4", "4", "mixed", "5", "6", "7", "8"]
    mixed = network.find("mixed")
    assert set(_named(result.accuracy)) == {child.name for child in network.children}
    widths = {name: network.grid_bits(name, mixed) for name in network.layers}
    assert (widths["stage1.0.conv1"], widths["stage3.0.conv2"], widths["stage2.0.conv1"]) == (8, 2, 4)
    reads = {name: network.sites[layer.site].bits[mixed] for name, layer in network.layers.items()}
    assert (reads["stage2.0.conv2"], reads["stage2.0.conv1"]) == (4, 8)


def test_freezing_does_not_depend_on_what_was_trained_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a mixed step every norm stands at another pair of widths; the frozen numbers must not."""
    networks: list[MultiBitNetwork] = []

    def keep(network: MultiBitNetwork, children: Any) -> FrozenNetwork:
        networks.append(network)
        return freeze(network, children)

    monkeypatch.setattr(api, "freeze", keep)
    _train(tmp_path / "run", epochs=1, limit=120, step_plan="mixed", norm="transitional", **PLAIN)
    (network,) = networks
    first = freeze(network, network.known)
    layers = network.switchable
    network.use(Child("left-over", {layer: 1 + place % 4 for place, layer in enumerate(layers)}, 8))
    second = freeze(network, network.known)
    for child in network.known:
        one, other = first.initializers(child), second.initializers(child)
        assert all((one[name] == other[name]).all() for name in one)


def test_learned_steps_are_trained_without_decay_and_kept(tmp_path: Path) -> None:
    """LSQ's steps move, stay positive and lie in the run's float weights; its codes do not nest."""
    options = {**PLAIN, "epochs": 2, "limit": 120, "quantizer": "lsq", "bits": "2,4,4a4"}
    result = _train(tmp_path / "run", **options, weight_decay=1e-3)
    assert [path.name for path in result.checkpoints] == ["model-w2.emq", "model-w4.emq"]
    torch.manual_seed(SMALL["seed"])
    network = api.network_spec(stored_config(result.run), load_dataset("digits", limit=120)).build()
    latent = safetensors.torch.load_file(result.run / "latent.safetensors")
    steps = {name: tensor for name, tensor in latent.items() if name.endswith("quantizer.step")}
    assert steps
    fresh = dict(network.graph.named_parameters())
    assert all(bool((tensor > 0).all()) and not torch.equal(tensor, fresh[name]) for name, tensor in steps.items())
    learned = {id(step) for layer in network.layers.values() for step in layer.quantizer.parameters()}
    decays = {
        group["weight_decay"] for group in parameter_groups(network, 1e-3) if learned & set(map(id, group["params"]))
    }
    assert decays == {0.0}
    assert len(learned) == len(steps)


def test_dedicated_networks_get_a_directory_each(tmp_path: Path) -> None:
    """One network per child, one file each, and a resumed run skips what is finished."""
    options = {**PLAIN, "method": "dedicated", "epochs": 1, "limit": 120, "bits": "4a4", "children": MIXED}
    result = _train(tmp_path / "run", **options)
    names = [str(path.relative_to(tmp_path / "run")) for path in result.checkpoints]
    assert names == ["w4a4/model.emq", "wmixed/model.emq"]
    assert stored_config(tmp_path / "run" / "wmixed").trained[0].name == "mixed"
    again = _train(tmp_path / "run", resume=True, **options)
    assert again.accuracy == result.accuracy


def test_scores_are_reused(run: TrainResult, tmp_path: Path) -> None:
    """A second run needs no score phase and chooses the same images."""
    result = _train(tmp_path / "run", scores_from=str(run.run))
    assert result.sample_passes == 2 * 3 * 99
    with pytest.raises(UsageError, match="holds no scores; name a run that was trained with --prune-rate"):
        _train(tmp_path / "other", scores_from=str(tmp_path))


def test_resuming_another_configuration_says_what_differs(run: TrainResult) -> None:
    """A resumed run keeps what it was configured with."""
    with pytest.raises(UsageError, match=r"was configured with --epochs 3 \(now 5\), --score el2n \(now random\)"):
        _train(run.run, resume=True, epochs=5, score="random")
    with pytest.raises(UsageError, match=r"--method emqnet \(now adabits\)"):
        _train(run.run, resume=True, recipe="adabits", **PLAIN)


def test_without_validation_images_the_last_epoch_counts(tmp_path: Path) -> None:
    """All images train, and nothing is measured on the way."""
    config = resolve(None, None, {"limit": 100, "epochs": 2, "bits": "2,8", "validation_share": 0.0})
    result = train(config, tmp_path / "run", console=Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_accuracy"] for line in lines] == [{}, {}]
    assert lines[-1]["sample_passes"] == 2 * 2 * 100
    assert load_checkpoint(result.checkpoints[0]).card.provenance["best_epoch"] == 1
    with pytest.raises(UsageError, match="--validation-share 0 leaves nothing to judge by but the test set"):
        train(config, tmp_path / "other", console=Console(quiet=True), report_test=False)
    with pytest.raises(UsageError, match=r"--validation-share is 1.0; allowed: 0 up to, not including, 1"):
        resolve(None, None, {"validation_share": 1.0})


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    """In one sentence that says how to begin anew; the run stays as it is."""
    config = resolve(None, None, {"limit": 100, "epochs": 1, "bits": "8"})
    train(config, tmp_path, console=Console(quiet=True))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["version"]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(EmqError, match=r"another version of emqdeploy.*begin anew with: emqdeploy train --config"):
        train(config, tmp_path, resume=True, console=Console(quiet=True))


@pytest.mark.parametrize("recipe", ["emqnet", "any-precision"])
def test_the_float_network_may_be_one_of_the_children(recipe: str, tmp_path: Path) -> None:
    """It trains, is judged beside the others and is in no file; it teaches where the highest child does."""
    given = {"limit": 200, "epochs": 2, "bits": "2,8,32", "validate_every": 1, "float_first": 0}
    result = train(resolve(recipe, None, given), tmp_path, console=Console(quiet=True))
    assert FLOAT in result.accuracy
    assert FLOAT not in result.fidelity
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"2", "8", "float"} == set(line["validation_accuracy"]) == set(line["loss"]) for line in lines)
    for path in result.checkpoints:
        checkpoint = load_checkpoint(path)
        assert FLOAT not in checkpoint.network.children
        assert "float" not in checkpoint.card.trained
        rebuilt = api.NetworkSpec.from_dict(checkpoint.card.structure).build()
        assert FLOAT not in rebuilt.trained
