"""AdaQAT: one child whose widths move, a run that continues exactly, and widths that leave a layer nothing to say."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import Child
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.training.api import TrainResult, train
from emqdeploy.training.methods.adaqat import AdaQAT, sizes_of
from emqdeploy.training.recipes import resolve

WIDTHS = {"target_bits": "3.5", "bit_cost": "bits", "search_share": 0.6}


def adaqat(path: Path, resume: bool = False, **more: Any) -> TrainResult:
    """A run on a few digits that compares widths in every step."""
    config = resolve(
        "adaqat", None, {"limit": 100, "batch_size": 16, "epochs": 3, "lr": 0.01, "probe_every": 1, **more}
    )
    return train(config, path, resume, Console(file=io.StringIO()))


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> list[AdaQAT]:
    """The methods that runs make."""
    made: list[AdaQAT] = []
    begin = AdaQAT.__init__

    def keep(self: AdaQAT, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)

    monkeypatch.setattr(AdaQAT, "__init__", keep)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run that nothing stopped."""
    return adaqat(tmp_path_factory.mktemp("adaqat") / "run", **WIDTHS)


def test_a_target_is_met_and_the_child_is_named_by_its_widths(whole: TrainResult) -> None:
    """While widths move nothing is validated; then the child that was found trains, and the file holds it alone."""
    (child,) = load_checkpoint(whole.checkpoints[0]).network.children
    assert child == Child.of(child.bits, child.activations.default)
    assert child.bits + child.activations.default == 7
    assert (whole.trained, whole.wrong) == ((child,), None)
    lines = [json.loads(line) for line in (whole.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["search", "train", "train"]
    assert [bool(line["validation_accuracy"]) for line in lines] == [False, True, True]


def test_a_run_continues_exactly(
    whole: TrainResult, method: list[AdaQAT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while widths move, it ends with the widths and the weights of the run that nothing stopped."""

    def die(self: AdaQAT) -> None:
        if self.steps == 7:
            raise RuntimeError("killed")

    monkeypatch.setattr(AdaQAT, "after_update", die)
    with pytest.raises(RuntimeError, match="killed"):
        adaqat(tmp_path / "run", **WIDTHS)
    monkeypatch.delattr(AdaQAT, "after_update")
    assert not method[0].settled
    assert method[0].child != Child("learned", 8, 8)
    assert adaqat(tmp_path / "run", resume=True, **WIDTHS).trained == whole.trained
    name = "latent.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (whole.run / name).read_bytes()


def test_a_target_of_latency_takes_what_was_measured(small: Any, tmp_path: Path) -> None:
    """One layer alone is faster at fewer bits: per layer, it alone is narrowed, as far as the target asks."""
    names = small.network.switchable
    rows = [{"name": name, "saves": {"latency": {"2": 6.0 if name == "stage2.0.conv2" else 0.0}}} for name in names]
    (tmp_path / "times.json").write_text(json.dumps({"whole": {"latency": 10.0}, "layers": rows}))
    result = adaqat(
        tmp_path / "run",
        **{"bit_cost": "latency", "latencies": tmp_path / "times.json", "per_layer": True, "target_bits": "4"},
    )
    (child,) = load_checkpoint(result.checkpoints[0]).network.children
    assert child.weights.of("stage2.0.conv2") <= 4
    assert all(child.weights.of(name) == 8 for name in names if name != "stage2.0.conv2")


def test_a_clip_and_the_statistics_go_with_the_child(small: Any) -> None:
    """One clip per tensor whatever its width, as PACT has it; other children keep theirs."""
    spec = small.spec.__class__(**{**vars(small.spec), "trained": (Child("learned", 8, 8),), "unseen": ()})
    network = spec.build()
    network.initialise_clips(torch.from_numpy(small.images))
    old, new = network.trained[0], Child("learned", 3, 4)
    before = {name: site.clips()[old] for name, site in network.sites.items()}
    network.use(old)
    network.redefine(old, new)
    assert (network.trained, network.child) == ((new,), new)
    assert {name: site.clips()[new] for name, site in network.sites.items()} == before
    assert all(norm.row(new) == 0 for norm in network.norms.values())
    widths = {site.code_range(new).levels for name, site in network.sites.items() if name != "input"}
    assert 16 in widths


def test_widths_that_leave_a_layer_nothing_to_say_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer is named, and what was saved before is there to go on from."""
    begin = AdaQAT.begin_epoch

    def flatten(self: AdaQAT, epoch: int) -> None:
        begin(self, epoch)
        if epoch == 1:
            with torch.no_grad():
                self.setting.network.layers["stage2.0.conv1"].quantizer.step.fill_(1e3)

    monkeypatch.setattr(AdaQAT, "begin_epoch", flatten)
    more = {"quantizer": "double-rounding", "bits": "8", "cost_weight": 50.0}
    with pytest.raises(EmqError, match=r"all weights of layer stage2\.0\.conv1 are the same; "):
        adaqat(tmp_path / "run", **more)
    assert (tmp_path / "run" / "state.pt").is_file()


def test_layers_are_counted(small: Any) -> None:
    """Weights, and multiplications for one image; statistics stay as they are."""
    network = small.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sizes = sizes_of(network, torch.from_numpy(small.images))
    weights = [network.layers[name].weight for name in network.switchable]
    assert sizes.counts.tolist() == [weight.numel() for weight in weights]
    places = dict(zip(network.switchable, sizes.macs / sizes.counts, strict=True))
    assert (places["stage1.0.conv1"], places["stage3.0.conv2"]) == (64, 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"target_bits": "9"}, "--target-bits is 9; allowed: 2 to 8, from --least-bits to the widest"),
        ({"target_bits": "1.5"}, "--target-bits is 1.5; allowed: 2 to 8"),
        ({"target_bits": "3,4"}, "--method adaqat learns one child; give --target-bits one width"),
        ({"bit_cost": "latency"}, "--bit-cost latency and --latencies FILE belong together"),
        ({"latencies": "times.json"}, "--bit-cost latency and --latencies FILE belong together"),
        ({"least_bits": 9}, "--least-bits is 9; allowed: 1 to 8 with this quantizer and --bits"),
        (
            {"quantizer": "lsq", "bits": "8"},
            "which quantizer 'lsq' cannot make; use --quantizer tanh or double-rounding",
        ),
        ({"quantizer": "double-rounding", "bits": "8", "least_bits": 1}, "--least-bits is 1; allowed: 2 to 8"),
        ({"bits": "float"}, "--bits has 'float'"),
        ({"bits": "32"}, "--method adaqat needs a child to begin with, for example --bits 8"),
        ({"distill": "cached"}, "--distill cached needs several children, --method adaqat trains one"),
        ({"bit_cost": "joules"}, "unknown bit cost 'joules'; known: bitops, bits, latency, size"),
        ({"search_share": 1.0}, "--search-share is 1.0; allowed: 0 up to, not including, 1"),
    ],
)
def test_wrong_options_are_named(values: dict[str, Any], sentence: str) -> None:
    """Each message says what was given and what is allowed."""
    with pytest.raises(UsageError, match=re.escape(sentence)):
        resolve(None, None, {"method": "adaqat", **values})
