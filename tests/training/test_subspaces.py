"""Subspaces: what the ends learn, what pushes them apart, and that their middle is a network like any other."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch.func import functional_call

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child, parse_children
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.training.api import TrainResult, train
from emqdeploy.training.methods import Method
from emqdeploy.training.optimizers import parameter_groups
from emqdeploy.training.recipes import resolve
from emqdeploy.training.subspaces import SUBSPACES, Line, Origin, Subspace

CHILDREN = parse_children("2,8")
SPEC = NetworkSpec("resnet8", 4, (1, 8, 8), 2.0, CHILDREN)
NAMES = ("line", "curve", "simplex")


def made(name: str, fresh: bool = True) -> tuple[MultiBitNetwork, Any]:
    """A network and a subspace around it."""
    torch.manual_seed(0)
    network = SPEC.build()
    network.initialise_clips(torch.randn(8, 1, 8, 8))
    groups = parameter_groups(network, 5e-4)
    return network, SUBSPACES[name](Origin(network, groups, None, SPEC.build if fresh else None, 3))


@pytest.mark.parametrize("name", NAMES)
def test_points_lie_between_the_ends(name: str) -> None:
    """Shares add up to one, differ from step to step, are the same again for the same step, and even on average."""
    _, subspace = made(name)
    drawn = []
    for number in (*range(200), 7):
        subspace.draw(number)
        drawn.append(subspace.drawn)
    shares = np.array(drawn)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(1), 1)
    assert drawn[-1] == drawn[7] != drawn[8]
    np.testing.assert_allclose(shares.mean(0), 1 / subspace.count, atol=0.07)
    assert sum(subspace.middle()) == pytest.approx(1)


def test_the_middle_of_a_curve_is_not_that_of_its_ends() -> None:
    """A quadratic Bezier curve passes half way between the middle of the ends and the point that bends it."""
    _, subspace = made("curve")
    assert subspace.middle() == (0.25, 0.25, 0.5)
    assert subspace.at(0.0) == (1, 0, 0)
    assert subspace.at(1.0) == (0, 1, 0)


@pytest.mark.parametrize("name", NAMES)
def test_ends_have_the_gradient_of_the_point(name: str) -> None:
    """What torch derives through the sum of ends is what they get, and the optimizer holds them alone."""
    network, subspace = made(name)
    images, number = torch.randn(8, 1, 8, 8), 5
    subspace.draw(number)
    subspace.place(CHILDREN[0])
    network.use(CHILDREN[0])
    network.train()
    network(images).square().mean().backward()
    subspace.collect()
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    keys = [names[id(point)] for point in subspace.points]
    ends = [[end.detach().clone().requires_grad_() for end in corner] for corner in subspace.corners]
    mixed = {
        key: sum(share * corner[place] for share, corner in zip(subspace.drawn, ends, strict=True))
        for place, key in enumerate(keys)
    }
    functional_call(network, mixed, (images,)).square().mean().backward()
    for corner, mine in zip(ends, subspace.corners, strict=True):
        for key, expected, end in zip(keys, corner, mine, strict=True):
            assert (expected.grad is None) == (end.grad is None), key
            if expected.grad is not None:
                torch.testing.assert_close(end.grad, expected.grad, rtol=1e-4, atol=1e-6)
    learned = {id(parameter) for group in subspace.groups for parameter in group["params"]}
    assert {id(end) for end in subspace.ends} <= learned
    assert not learned & {id(point) for point in subspace.points}
    assert all(point.grad is None for point in subspace.points)


def test_ends_start_independently_and_are_pushed_apart() -> None:
    """The gradient of ``cos^2`` over all weights at once; from trained weights they start alike."""
    _, subspace = made("line")
    one, other = ([corner[place] for place in subspace.weights] for corner in subspace.corners)
    assert all(not torch.equal(left, right) for left, right in zip(one, other, strict=True))
    with torch.no_grad():
        for left, right in zip(one, other, strict=True):
            right.lerp_(left, 0.5)
    flat = [torch.cat([end.detach().flatten() for end in ends]).requires_grad_() for ends in (one, other)]
    torch.nn.functional.cosine_similarity(*flat, dim=0).square().backward()
    subspace.spread(0)
    for ends, expected in zip((one, other), flat, strict=True):
        found = torch.cat([end.grad.flatten() for end in ends if end.grad is not None])
        torch.testing.assert_close(found, expected.grad, rtol=1e-4, atol=1e-7)
    _, alike = made("line", fresh=False)
    assert all(torch.equal(left, right) for left, right in zip(*alike.corners, strict=True))


def test_the_precisions_lie_on_a_line() -> None:
    """The widest child at one end, the narrowest at the other, one between at its place, float in the middle."""
    network, subspace = made("precision")
    with torch.no_grad():
        for end in subspace.corners[1]:
            end.add_(1.0)
    for child, place in ((CHILDREN[1], 0.0), (CHILDREN[0], 1.0), (Child.of(4), 2 / 3)):
        network.use(child)
        for point, start in zip(subspace.points, subspace.corners[0], strict=True):
            torch.testing.assert_close(point.detach(), start.detach() + place)
    network.set_bits(32)
    torch.testing.assert_close(subspace.points[0].detach(), subspace.corners[0][0].detach() + 0.5)
    assert SUBSPACES["precision"].usual_diversity == 0  # type: ignore[attr-defined]


def run(out: Path, resume: bool = False, **given: Any) -> TrainResult:
    """A short run."""
    values = {"limit": 120, "epochs": 1, "batch_size": 32, "bits": "2,8", **given}
    return train(resolve(None, None, values), out, resume, console=Console(file=io.StringIO()), report_test=False)


@pytest.mark.parametrize("name", ["line", "precision"])
def test_what_is_deployed_is_exact(name: str, tmp_path: Path) -> None:
    """One file of the middle, or one per width of the line over them; every logit is the integer reference's."""
    result = run(tmp_path / "run", subspace=name, ema=0.9 if name == "line" else 0.0)
    assert result.wrong is None
    assert [path.name for path in result.checkpoints] == (
        ["model-w2.emq", "model-w8.emq"] if name == "precision" else ["model.emq"]
    )
    images = np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32).clip(-1, 1)
    for path in result.checkpoints:
        checkpoint = load_checkpoint(path)
        for child in checkpoint.network.children:
            expected, _ = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(images)
            found = OnnxRuntime(checkpoint, [child], threads=1)(images)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    latent = safetensors.torch.load_file(tmp_path / "run" / "latent.safetensors")
    assert not [key for key in latent if "end" in key or "corner" in key]


def test_statistics_are_those_of_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation judges the middle with statistics estimated for it, not those that drawn points left behind."""
    seen: list[tuple[tuple[float, ...], bool]] = []  # the point, and whether both trained children have statistics
    show = Line.show

    def noting(self: Line, *given: Any) -> None:
        show(self, *given)
        seen.append((self.shares, all(bool(norm.estimated[:2].all()) for norm in self.network.norms.values())))

    monkeypatch.setattr(Line, "show", noting)
    run(tmp_path / "run", subspace="line")
    assert seen == [((0.5, 0.5), True)]
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert set(line["validation_accuracy"]) == {"2", "8"}


def test_a_run_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends, their momentum and the points that are drawn: the same weights at the end, bit for bit."""
    options: dict[str, Any] = {"subspace": "simplex", "epochs": 2}
    run(tmp_path / "whole", **options)
    count, after = [0], Method.after_update

    def die(method: Method) -> None:
        after(method)
        count[0] += 1
        if count[0] == 6:
            raise RuntimeError("killed")

    monkeypatch.setattr(Method, "after_update", die)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "part", **options, save_every=0)
    monkeypatch.undo()
    run(tmp_path / "part", resume=True, **options, save_every=0)
    name = "latent.safetensors"
    assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"subspace": "precision", "bits": "4"}, "is a line from one width to another; give two --bits or more"),
        ({"subspace": "line", "norm": "private"}, "needs gains and shifts that all children share; use --norm shared"),
        ({"diversity": 1.0}, "--diversity says nothing without --subspace; leave it out, or give both"),
        ({"subspace": "circle"}, "unknown subspace 'circle'; known: curve, line, none, precision, simplex"),
    ],
)
def test_bad_choices_are_refused(given: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    """In one sentence, before anything is written."""
    with pytest.raises(UsageError, match=sentence):
        run(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_without_a_subspace_nothing_is_added() -> None:
    """The optimizer has the network's own parameters, and passes change nothing."""
    network, subspace = made("none")
    assert type(subspace) is Subspace
    learned = {id(parameter) for group in subspace.groups for parameter in group["params"]}
    assert learned == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for act in (lambda: subspace.draw(0), lambda: subspace.place(CHILDREN[0]), subspace.rest, subspace.collect):
        act()
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
