"""Quantizing without training: each step does what it says, and the whole gives a checkpoint that holds its word."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.cli import main
from emqdeploy.data import load_dataset
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.format.levels import FULL, HALF, LEVELS
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import image_source
from emqdeploy.training.clips import CLIP_CHOICES, calibrate_clips
from emqdeploy.training.evaluate import accuracies
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.judging import Verdict
from emqdeploy.training.posttraining.quantize import QuantizeResult, advice, calibrate, calibration_batches, quantize
from emqdeploy.training.posttraining.stages import BIAS_CORRECTIONS, EQUALIZATIONS, STATISTICS

ONE, TWO, FOUR, EIGHT = map(Child.of, (1, 2, 4, 8))
NARROW = Child("narrow", {"*": 4, "stage1.0.conv1": 8, "stage3.0.conv2": 2}, {"*": 8, "stage2.0.conv2": 4})
COARSE = Child.of(4, 3)
CHILDREN = (TWO, FOUR, EIGHT)


@pytest.fixture
def network(trained_digits: Path) -> MultiBitNetwork:
    """The trained model with quantizers in it."""
    return build(trained_digits, (*CHILDREN, NARROW))


def build(trained_digits: Path, children: tuple[Child, ...]) -> MultiBitNetwork:
    """The trained model, for some children."""
    state = safetensors.torch.load_file(trained_digits)
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, children)
    return spec.build(lambda model: model.load_state_dict(state)).eval()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    """A hundred training images in two batches."""
    return calibration_batches(load_dataset("digits"), 200, seed=0)


# --- the steps ----------------------------------------------------------------------------------------------------


def test_calibration_images_show_every_class_in_every_batch(batches: list[Tensor]) -> None:
    """Statistics of a batch that shows one class only would be that class's."""
    digits = load_dataset("digits")
    normalized = digits.preprocessing.normalize(digits.train.images[:])
    for batch in batches:
        found = {
            int(digits.train.labels[np.flatnonzero((normalized == image).all((1, 2, 3)))[0]]) for image in batch.numpy()
        }
        assert found == set(range(10))
    assert [len(batch) for batch in batches] == [100, 100]


def test_clip_choices_on_known_values() -> None:
    """The largest value, a percentile, and the clip that a fine search finds best."""
    values = torch.cat([torch.linspace(0, 1, 10_000), torch.tensor([-50.0])]).unsqueeze(1)
    assert CLIP_CHOICES["max"](values, 15, 15) == 50
    assert CLIP_CHOICES["max"](values, 250, 5) == 1
    assert CLIP_CHOICES["p99"](values, 15, 15) == pytest.approx(0.99, abs=0.01)
    torch.manual_seed(0)  # how far the largest lies out is chance
    outliers = torch.distributions.Laplace(0.0, 1.0).sample((50_000, 1))

    def error(clip: float) -> float:
        scale = clip / 15
        return float(((outliers / scale).round().clamp(-15, 15) * scale - outliers).square().mean())

    best = min(error(float(clip)) for clip in np.linspace(1, float(outliers.max()), 500))
    assert error(CLIP_CHOICES["mse"](outliers, 15, 15)) <= 1.02 * best
    assert error(CLIP_CHOICES["mse"](outliers, 15, 15)) < 0.5 * error(CLIP_CHOICES["max"](outliers, 15, 15))


def pooled(pool: nn.Module) -> MultiBitNetwork:
    """A network with one pooling behind its first layer, quantized to few levels, where clips cut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    model(torch.zeros(1, 3, 10, 10))
    return insert_quantizers(model, InsertionConfig(keep_8bit=()), (COARSE,), (), 3.0, (3, 10, 10)).eval()


@pytest.mark.parametrize(("pool", "wider"), [(nn.MaxPool2d(2), 1.05), (nn.AvgPool2d(2), 1.05)])
def test_clips_are_chosen_for_what_readers_see(pool: nn.Module, wider: float) -> None:
    """The largest values of a maximum, so that more of them are kept; of a mean, where cuts add up and steps do not."""
    images = torch.distributions.Laplace(0.0, 0.4).sample((64, 3, 10, 10)).clamp(-3, 3)
    clips = []
    for between in (nn.Identity(), pool):
        network = pooled(between)
        calibrate_clips(network, [images], "mse")
        clips.append(network.sites["_1"].clips()[COARSE])
    assert clips[1] > wider * clips[0]


def test_zero_lies_where_the_range_asks_for_it() -> None:
    """Behind SiLU hardly a code is below it at full levels, so that steps are much finer."""
    images = torch.randn(64, 3, 10, 10)
    steps = {}
    for levels in LEVELS:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5))
        model(images[:1])
        network = insert_quantizers(model, InsertionConfig(levels=levels), (EIGHT,), (), 3.0, (3, 10, 10)).eval()
        calibrate_clips(network, [images], "mse")
        before, behind = network.sites["_0"], network.sites["_1"]
        steps[levels] = behind.scale(EIGHT)
    assert steps[FULL] < 0.7 * steps[HALF]
    assert before.zero_point is None  # a convolution's answer has two sides
    assert behind.zero_point is not None
    assert 0.25 < behind.zero_point * steps[FULL] < 0.35  # the lowest value of SiLU is -0.28


def test_zero_is_last_where_nothing_is_below_it() -> None:
    """Images cannot show that no value ever is, so the tensor stays signed, but nearly all codes are above zero."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 10, 10)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softplus(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    model(images[:1])
    network = insert_quantizers(model, InsertionConfig(levels=FULL), (EIGHT,), (), 3.0, (3, 10, 10)).eval()
    calibrate_clips(network, [images], "max")
    behind = network.sites["_1"]
    assert behind.signed
    assert behind.zero_point == 1
    largest = float(model[:2](images).detach().max())
    assert behind.scale(EIGHT) == pytest.approx(largest / 254)


def test_the_largest_value_is_never_missed() -> None:
    """Of large tensors a sample is looked at, but nothing may be cut where nothing is to be cut."""
    images = torch.zeros(64, 3, 10, 10)
    network = pooled(nn.Identity())
    images[17, :, 4, 4] = 3.0
    with torch.no_grad():
        largest = float(network.graph.get_submodule("0")(images).max())
    calibrate_clips(network, [images] * 40, "max")
    assert network.sites["_1"].clips()[COARSE] == pytest.approx(largest)


@pytest.mark.parametrize("choice", list(CLIP_CHOICES))
def test_every_clip_choice_survives_a_dead_tensor(network: MultiBitNetwork, choice: str, batches: list[Tensor]) -> None:
    """A tensor that is always zero still gets a positive clip; the input's known range is kept."""
    with torch.no_grad():
        next(iter(network.norms.values())).weight.zero_()
        next(iter(network.norms.values())).bias.zero_()
    before = network.sites["input"].clips()
    calibrate_clips(network, batches, choice)
    assert network.sites["input"].clips() == before
    assert all(clip > 0 for site in network.sites.values() for clip in site.clips().values())


def outputs(network: nn.Module, images: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What the named modules give."""
    found: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: found.update({name: o}))
        for name in names
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return found


def test_matched_statistics_of_the_float_network_are_its_own(network: MultiBitNetwork, batches: list[Tensor]) -> None:
    """At a bit-width that changes nothing, the difference to the float network is nothing: a sample adds no noise."""
    for layer in network.layers.values():
        layer.quantizer.forward = lambda weight, bits, quantizer=layer.quantizer: (
            type(quantizer)
            .forward(  # type: ignore[method-assign, misc]
                quantizer, weight, bits
            )
            ._replace(value=weight, residual=torch.zeros(len(weight)))
        )
    for site in network.sites.values():
        site.forward = lambda x, site=site: x if site.signed else F.relu(x)  # type: ignore[method-assign, misc]
    before = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in network.norms.items()}
    STATISTICS["matched"](network, batches, (FOUR,))
    for name, norm in network.norms.items():
        mean, var = norm.statistics(FOUR)
        torch.testing.assert_close(mean, before[name][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(var, before[name][1], rtol=1e-4, atol=1e-5)
        assert torch.equal(norm.running_mean, before[name][0])


def test_estimated_statistics_normalize_the_images(network: MultiBitNetwork, batches: list[Tensor]) -> None:
    """On the calibration images themselves, every estimated normalization puts out its shift and gain."""
    calibrate_clips(network, batches, "mse")
    STATISTICS["bits"](network, batches, (TWO,))
    name = next(iter(network.norms))
    with network.at(TWO):
        found = outputs(network.graph, torch.cat(batches), [name])[name]
    norm = network.norms[name]
    torch.testing.assert_close(found.mean((0, 2, 3)), norm.bias, rtol=0.02, atol=0.02)
    STATISTICS["float"](network, batches, (TWO,))
    assert torch.equal(norm.statistics(TWO)[0], norm.running_mean)


def test_mean_correction_gives_every_layer_its_float_mean(network: MultiBitNetwork, batches: list[Tensor]) -> None:
    """After the correction the deployed layers have the float network's channel means, the last one included."""
    calibrate_clips(network, batches, "mse")
    STATISTICS["float"](network, batches, CHILDREN)
    images = batches[:1]

    def distance(frozen: FrozenNetwork) -> float:
        deployed = deployed_reference(network, frozen, TWO)
        with network.at(FLOAT):
            wanted = outputs(network.graph, images[0], [network.norm_of.get(name, name) for name in network.layers])
        found = outputs(deployed, images[0], list(network.layers))
        means = [
            (found[name].flatten(2).mean(2) if found[name].dim() == 4 else found[name]).mean(0)
            - (output.flatten(2).mean(2) if output.dim() == 4 else output).mean(0)
            for name, output in zip(network.layers, wanted.values(), strict=True)
        ]
        return max(float(mean.abs().max()) for mean in means)

    frozen = freeze(network, CHILDREN)
    corrected = BIAS_CORRECTIONS["mean"](network, frozen, images)
    assert distance(frozen) > 0.3
    assert distance(corrected) < 0.02
    assert BIAS_CORRECTIONS["none"](network, frozen, images) is frozen


def test_mean_correction_of_a_transformer(batches: list[Tensor]) -> None:
    """Without batch normalization nothing else restores the means; linear layers see tokens ``(N, T, C)``."""
    torch.manual_seed(0)
    network = NetworkSpec("vit-micro", 10, (1, 8, 8), 2.0, (TWO,)).build().eval()
    images = batches[0]
    calibrate_clips(network, [images], "mse")
    frozen = freeze(network, (TWO,))

    def distance(numbers: FrozenNetwork) -> float:
        with torch.no_grad(), network.at(FLOAT):
            return float((deployed_reference(network, numbers, TWO)(images) - network(images)).mean(0).abs().max())

    assert distance(BIAS_CORRECTIONS["mean"](network, frozen, [images])) < 0.1 * distance(frozen)


class PaddedKeys(nn.Module):
    """Keys that are normalized, many of them of padding: exact zeros, which have no direction."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.head = nn.Linear(3, 8, bias=False), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Twice as much padding as pixels."""
        tokens = F.pad(images.flatten(2).transpose(1, 2), (0, 0, 0, 200))
        logits: Tensor = self.head(F.normalize(self.key(tokens), dim=-1).mean(1))
        return logits


def test_mean_correction_is_left_out_where_it_harms() -> None:
    """A mean of a thousandth, added to a zero, points somewhere."""
    torch.manual_seed(0)
    network = insert_quantizers(PaddedKeys(), InsertionConfig(keep_8bit=()), (TWO,), (), 3.0, (3, 10, 10)).eval()
    images = torch.randn(64, 3, 10, 10)
    calibrate_clips(network, [images], "mse")
    frozen = freeze(network, (TWO,))
    kept = BIAS_CORRECTIONS["mean"](network, frozen, [images])
    for name, layer in kept.layers.items():
        np.testing.assert_array_equal(layer.biases[TWO], frozen.layers[name].biases[TWO])


# --- the whole ----------------------------------------------------------------------------------------------------


def config(file: Path, **changes: object) -> QuantizeConfig:
    """Quantizes the fixture's model."""
    return replace(QuantizeConfig(file, "resnet8", "digits", images=200), **changes)  # type: ignore[arg-type]


def test_quantizing_keeps_the_accuracy_at_four_bits_and_more(trained_digits: Path, tmp_path: Path) -> None:
    """A trained model becomes a checkpoint of usable children, whose accuracy is that of its deployed numbers."""
    lines: list[str] = []
    result = quantize(config(trained_digits), tmp_path / "run", lines.append, threads=1)
    assert result.float_accuracy > 95
    assert [child.bits for child in result.usable] == [4, 5, 6, 7, 8]
    assert result.images == 200
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.network.children == tuple(map(Child.of, (4, 5, 6, 7, 8)))
    assert checkpoint.card.method == "post-training"
    assert checkpoint.card.data.name == "digits"
    assert list(checkpoint.card.accuracy) == [child.name for child in result.accuracy] == ["4", "5", "6", "7", "8"]
    assert any("calibrating 5 children on 200 training images" in line for line in lines)
    assert "8 computes the same integers as 7, because an int8 holds no more" in lines
    seven, eight = (checkpoint.network.initializers(Child.of(bits)) for bits in (7, 8))
    assert all((eight[name] == array).all() for name, array in seven.items())
    assert result.accuracy[Child.of(7)] == result.accuracy[Child.of(8)]
    with pytest.raises(UsageError, match="already holds a checkpoint; choose another --out"):
        quantize(config(trained_digits), tmp_path / "run")


def test_from_the_command_line(
    trained_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One JSON object with every stored child, those between included; progress apart from it."""
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text('[children.mixed]\nweights = {"*" = 4, "stage1.0.conv1" = 8}\nactivations = 8\n')
    base = [
        "quantize",
        str(trained_digits),
        "--data",
        "digits",
        "--model",
        "resnet8",
        "--images",
        "100",
        "--test-images",
        "50",
        "--threads",
        "1",
    ]
    with pytest.raises(SystemExit, match="0"):
        main([*base, "--bits", "6,8,4a4", "--children", "c.toml", "--json"])
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert list(values["accuracy"]) == ["4a4", "mixed", "6", "7", "8"]
    assert values["checkpoint"] == "runs/digits-resnet8-001/model.emq"
    assert "calibrating" in printed.err
    assert "decisions of 5 children on 50 test images" in printed.err


def test_what_is_lost_is_recommended_for_training() -> None:
    """The table and the advice name the bit-widths to use and the command that gets the others."""
    chosen = QuantizeConfig(Path("w.pth"), "resnet8", "digits", bits=(1, 2, 8))
    accuracy = {ONE: 60.0, TWO: 93.0, FOUR: 96.5, EIGHT: 97.0}
    bounds = {ONE: (37.0, 35.0, 39.0), TWO: (4.0, 3.0, 5.0), FOUR: (0.5, -0.5, 1.5), EIGHT: (0.0, -0.5, 0.5)}
    verdicts = {child: Verdict.of(*one, allowed=1.0) for child, one in bounds.items()}
    result = QuantizeResult(Path("runs/x/model.emq"), accuracy, 97.0, verdicts, 512, 1.0, [], {})
    text = advice(chosen, result)
    assert "more than 1 points lost at: 1, 2; train from the same weights" in text
    assert "emqdeploy train --data digits --model resnet8 --pretrained w.pth --bits 1,2,8\n" in text
    assert "emqdeploy export runs/x --bits 8" in text
    assert "perhaps more than 1 points at: 4; more test images would tell" in text
    assert "export" not in advice(chosen, replace(result, verdicts={ONE: verdicts[ONE]}))
    lost = replace(result, verdicts={NARROW: verdicts[ONE], Child.of(4, 2): verdicts[ONE], EIGHT: verdicts[EIGHT]})
    text = advice(replace(chosen, bits="8,4a2", children=(NARROW,)), lost)
    assert "lost at: narrow, 4a2; train" in text
    assert "--pretrained w.pth --bits 4a2,8 --children FILE\n" in text
    made = replace(
        chosen, bits="8,4a2", children=(NARROW,), weights=Path("my w.pth"), weights_entry="ema", image_size=32,
        data_dir=Path("/pictures"), activation_bits=4, std=(0.5,)
    )  # fmt: skip
    text = advice(made, lost, "my children.toml")
    assert "--data-dir /pictures --image-size 32 --std 0.5 --model resnet8 --pretrained 'my w.pth'" in text
    assert "--weights-entry ema --bits 4a2,8a4 --act-bits 4" in text
    assert "--children 'my children.toml'\n" in text


def test_every_child_has_numbers_of_its_own(network: MultiBitNetwork, batches: list[Tensor]) -> None:
    """Clips by the activation width that a tensor has at a child, statistics and biases by the child."""
    chosen = QuantizeConfig(
        Path("w.pth"), "resnet8", "digits", bits=(2, 4, 8), children=(NARROW,), reconstruction="none"
    )
    frozen = calibrate(network, batches, chosen)
    read = frozen.sites[frozen.layers["stage2.0.conv2"].site]
    assert read.bits == {TWO: 8, FOUR: 8, EIGHT: 8, NARROW: 4}
    assert read.scales[NARROW] > 4 * read.scales[FOUR]
    assert frozen.grid_bits("stage3.0.conv2", NARROW) == 2
    layer = frozen.layers["stage3.0.conv2"]
    assert not (layer.biases[NARROW] == layer.biases[TWO]).all()
    norm = network.norms[network.norm_of["stage3.0.conv2"]]
    assert not torch.equal(norm.statistics(NARROW)[0], norm.statistics(TWO)[0])


def test_layers_that_do_not_exist_are_refused(trained_digits: Path, tmp_path: Path) -> None:
    """A child's map names layers of this network, and widths that they can have."""
    for weights, sentence in (
        ({"conv9": 4}, "names layer 'conv9'"),
        ({"fc": 4}, "gives layer 'fc' 4 bits, but it stays"),
    ):
        with pytest.raises(UsageError, match=sentence):
            quantize(config(trained_digits, children=(Child("odd", weights),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_methods_combine_and_repeat(trained_digits: Path, batches: list[Tensor]) -> None:
    """Every registered method gives numbers that work at 8 bits, the same ones every time."""
    digits, network = load_dataset("digits"), build(trained_digits, (EIGHT,))
    test = image_source(digits.test, digits.preprocessing, "none", torch.device("cpu"))
    for statistics, correction, equalization in itertools.product(STATISTICS, BIAS_CORRECTIONS, EQUALIZATIONS):
        chosen = QuantizeConfig(
            Path("w.pth"), "resnet8", "digits", statistics=statistics, bias_correction=correction,
            equalization=equalization,
        )  # fmt: skip
        frozen, again = (calibrate(copy.deepcopy(network), batches, chosen) for _ in range(2))
        assert accuracies({EIGHT: deployed_reference(network, frozen, EIGHT)}, test)[EIGHT] > 94
        arrays, others = frozen.initializers(EIGHT), again.initializers(EIGHT)
        assert all((arrays[name] == others[name]).all() for name in arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": ()}, "--bits is empty"),
        ({"bits": (0, 4)}, "weight width 0; allowed: 1..8"),
        ({"activation_bits": 1}, "--act-bits is 1; allowed: 2..8"),
        ({"images": 3}, "--images is 3; it must be at least 16"),
        ({"clips": "median"}, "unknown clip calibration 'median'; known: majority, max, mse"),
        ({"equalization": "x"}, "unknown equalization"),
        ({"statistics": "x"}, "unknown statistics"),
        ({"bias_correction": "x"}, "unknown bias correction"),
        ({"usable_drop": -1.0}, "--usable-drop is -1.0"),
    ],
)
def test_wrong_options(trained_digits: Path, changes: dict[str, object], message: str) -> None:
    """Each wrong option is one sentence with what is allowed, before any work."""
    with pytest.raises(UsageError, match=message):
        config(trained_digits, **changes)


def test_weights_of_other_models_are_refused(trained_digits: Path, tmp_path: Path) -> None:
    """Nothing is written."""
    with pytest.raises(EmqError, match=r"choose the --model that the weights were trained for"):
        quantize(config(trained_digits, model="resnet20"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
