"""Float weights from files: every usual way to save them, nothing run, and one sentence for each mismatch."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.models import create_model
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.training import weights_file
from emqdeploy.training.pretrained import Pretrained, load_pretrained

State = dict[str, Tensor]


def network(classes: int = 10, channels: int = 1, seed: int = 0) -> nn.Module:
    """A ResNet-8 with random weights and statistics."""
    torch.manual_seed(seed)
    model = create_model("resnet8", classes, channels, 8)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    return model


SAVED = network(seed=1)
STATE: State = SAVED.state_dict()


def safetensors_file(state: State, path: Path) -> Path:
    """Write a .safetensors file."""
    safetensors.torch.save_file(
        {name: tensor.clone() for name, tensor in state.items()}, path.with_suffix(".safetensors")
    )
    return path.with_suffix(".safetensors")


def pickled(wrap: Callable[[State], Any]) -> Callable[[State, Path], Path]:
    """Write what ``wrap`` makes of the state with torch.save."""

    def write(state: State, path: Path) -> Path:
        torch.save(wrap(state), path.with_suffix(".pth"))
        return path.with_suffix(".pth")

    return write


def renamed(prefix: str) -> Callable[[State], State]:
    """Put a prefix before every name."""
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


WAYS: dict[str, Callable[[State, Path], Path]] = {
    "safetensors": safetensors_file,
    "plain": pickled(dict),
    "half": pickled(lambda state: {name: tensor.half() for name, tensor in state.items()}),
    "state_dict": pickled(lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}),
    "model": pickled(lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("x"))}),
    "numpy beside it": pickled(lambda state: {"model": state, "accuracy": np.float64(9.5), "curve": np.arange(3.0)}),
    "DataParallel": pickled(renamed("module.")),
    "compiled and parallel": pickled(lambda state: {"state_dict": renamed("module._orig_mod.")(state)}),
    "Lightning": pickled(lambda state: {"state_dict": renamed("model.")(state)}),
    "without counters": pickled(lambda state: {n: t for n, t in state.items() if "num_batches" not in n}),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_every_usual_way_to_save_weights(tmp_path: Path, way: str) -> None:
    """People arrive with files of many training scripts; each gives the same network."""
    model = network()
    notes = load_pretrained(model, WAYS[way](STATE, tmp_path / "w"))
    for name, tensor in model.state_dict().items():
        if way == "half":
            torch.testing.assert_close(tensor, STATE[name], atol=1e-2, rtol=1e-2)
        elif "num_batches" not in name:
            assert torch.equal(tensor, STATE[name])
    assert len(notes) == 1
    assert notes[0].startswith("loaded ")


def test_a_model_whose_names_start_like_a_prefix_keeps_them(tmp_path: Path) -> None:
    """``model.`` is only taken off where it is not part of the names."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)

    saved, loaded = Wrapped(), Wrapped()
    load_pretrained(loaded, pickled(dict)(saved.state_dict(), tmp_path / "w"))
    assert torch.equal(loaded.model.weight, saved.model.weight)


def test_a_head_of_other_classes_starts_anew(tmp_path: Path) -> None:
    """Fine-tuning replaces the last layer, and says so."""
    model = network(classes=7)
    before = model.get_submodule("fc").weight.clone()  # type: ignore[operator, union-attr]
    file = safetensors_file(STATE, tmp_path / "w")
    notes = load_pretrained(model, file)
    assert torch.equal(model.state_dict()["fc.weight"], before)
    assert torch.equal(model.state_dict()["conv1.weight"], STATE["conv1.weight"])
    assert notes[1] == f"the last layer 'fc' has 7 classes here and 10 in {file}: it starts from fresh weights"
    headless = {name: tensor for name, tensor in STATE.items() if not name.startswith("fc.")}
    assert "and none in" in load_pretrained(model, safetensors_file(headless, tmp_path / "h"))[1]
    with pytest.raises(EmqError, match=r"7 classes here and 10 in .*; train it with: emqdeploy train --pretrained"):
        load_pretrained(model, file, fresh_head=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage1.0.conv1.weight": None}, "lacks 'stage1.0.conv1.weight', which SmallResNet needs; choose the --model"),
        ({"layer1.weight": torch.ones(1)}, "holds 'layer1.weight', which SmallResNet does not have"),
        ({"conv1.weight": torch.ones(16, 3, 3, 3)}, r"has shape \(16, 3, 3, 3\) in .* and \(16, 1, 3, 3\) in SmallRes"),
        ({"bn1.weight": torch.full((16,), torch.nan)}, "'bn1.weight' in .* holds values that are not finite"),
    ],
)
def test_mismatches_are_named_and_change_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """The first tensor that does not fit is named, and the model keeps its weights."""
    state = {name: tensor for name, tensor in (STATE | change).items() if tensor is not None}
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(EmqError, match=message):
        load_pretrained(model, safetensors_file(state, tmp_path / "w"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Malicious:
    """Runs a command when an ordinary unpickler reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_broken_and_malicious_files(tmp_path: Path) -> None:
    """Nothing in a file is run; each kind of broken file is one sentence."""
    proof = tmp_path / "proof"
    torch.save({"model": Malicious(proof)}, tmp_path / "bad.pth")
    torch.save(SAVED, tmp_path / "module.pt")
    for name, what in (("bad.pth", "asks for posix.system"), ("module.pt", "asks for .*SmallResNet")):
        with pytest.raises(EmqError, match=f"{name} {what}, which could run code and is refused; save only") as caught:
            load_pretrained(network(), tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not proof.exists()
    whole = pickled(dict)(STATE, tmp_path / "w").read_bytes()
    contents = {
        "cut.pth": whole[:9000],
        "page.pth": b"<html>",
        "empty.pt": b"",
        "cut.safetensors": b"\x10\0\0\0\0\0\0\0{",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EmqError, match=name) as caught:
            load_pretrained(network(), tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(EmqError, match="holds no tensors by name"):
        load_pretrained(network(), tmp_path / "list.pth")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "odd",
    [
        Tensor.to_sparse,
        Tensor.to_sparse_csr,
        lambda weight: weight.to("meta"),
        lambda weight: weight.to(torch.complex64),
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        lambda weight: torch.nested.nested_tensor(list(weight)),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(odd: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    """Torch stores many kinds, and fails in as many ways where one is taken for another."""
    name = next(name for name, tensor in STATE.items() if tensor.ndim == 2)
    torch.save(STATE | {name: odd(STATE[name])}, tmp_path / "odd.pth")
    with pytest.raises(EmqError, match=f"'{name}' in .*odd.pth is sparse, quantized, complex or without numbers"):
        load_pretrained(network(), tmp_path / "odd.pth")


@pytest.mark.parametrize(("kind", "factor"), [(torch.float8_e4m3fn, torch.nan), (torch.float64, 1e300)])
def test_numbers_are_finite_in_the_model(kind: torch.dtype, factor: float, tmp_path: Path) -> None:
    """Whatever type the file has; a type of its own is no obstacle."""
    name = next(name for name, tensor in STATE.items() if tensor.ndim == 2)
    file = pickled(dict)(STATE | {name: (STATE[name] * factor).to(kind)}, tmp_path / "odd")
    with pytest.raises(EmqError, match=f"'{name}' in .* holds values that are not finite"):
        load_pretrained(network(), file)
    load_pretrained(network(), pickled(dict)(STATE | {name: STATE[name].to(kind)}, tmp_path / "even"))


def test_a_file_of_weights_is_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it is, of either kind, and by what a compressed archive would unfold to."""
    stored, packed = pickled(dict)(STATE, tmp_path / "w"), tmp_path / "packed.pth"
    with zipfile.ZipFile(stored) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    with pytest.raises(EmqError, match=r"packed.pth is not a readable weights file \(it is a compressed archive"):
        load_pretrained(network(), packed)
    monkeypatch.setattr(weights_file, "LARGEST_WEIGHTS", 1000)
    for path in (stored, safetensors_file(STATE, tmp_path / "w")):
        with pytest.raises(EmqError, match=rf"{path.name} has \d+ bytes, at most 1000 are read"):
            load_pretrained(network(), path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pth", "there is no file .*none.pth; give float weights as"),
        ("model.emq", "is no file of float weights; the float weights of a run are in latent.safetensors beside it"),
        ("model.onnx", "is no file of float weights; known: .safetensors, .pth"),
        ("", "holds no latent.safetensors; name a weights file or a run directory"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, message: str) -> None:
    """What people try first is answered with what serves."""
    if name and "none" not in name:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=message):
        load_pretrained(network(), tmp_path / name)


def test_weights_go_in_before_the_quantizers(tmp_path: Path) -> None:
    """Insertion keeps names and values, so a run's latent weights and a stranger's file load alike."""
    path = safetensors_file(STATE, tmp_path / "latent")
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (Child.of(4), Child.of(8)))
    built = spec.build(lambda model: load_pretrained(model, tmp_path))
    assert path.name == "latent.safetensors"
    images = torch.randn(4, 1, 8, 8)
    built.use(FLOAT)
    torch.testing.assert_close(built.eval()(images), SAVED.eval()(images))
    assert set(built.float_state()) == set(STATE)


OTHER: State = {name: tensor + 1 for name, tensor in STATE.items()}
"""Weights that can be told from `STATE`."""


def before(prefix: str, state: State) -> State:
    """A state behind a prefix."""
    return {prefix + name: tensor for name, tensor in state.items()}


SEVERAL: dict[str, tuple[Any, str | None, str]] = {
    "timm": ({"epoch": 9, "state_dict": STATE, "state_dict_ema": OTHER}, "state_dict_ema", "'state_dict'"),
    "torchvision": (
        {"model": STATE, "model_ema": {"n_averaged": torch.tensor(1), **before("module.", OTHER)}},
        "model_ema",
        "'model'",
    ),
    "in one dictionary": ({**STATE, **before("ema_model.", OTHER)}, "ema_model", "those in no entry"),
    "one inside the other": ({"net": {**before("model.", STATE), **before("model.ema.", OTHER)}}, "ema", "'net.model'"),
    "optimizer beside it": ({"model": STATE, "optimizer": {"state": {0: STATE}}}, None, ""),
}


@pytest.mark.parametrize("way", list(SEVERAL))
def test_raw_and_averaged_weights_are_told_apart(tmp_path: Path, way: str) -> None:
    """Those that were trained are taken, the note says which and how to take the others, and these can be had."""
    content, other, taken = SEVERAL[way]
    torch.save(content, tmp_path / "w.pth")
    model = network()
    notes = load_pretrained(model, tmp_path / "w.pth", fresh_head=False)
    assert torch.equal(model.state_dict()["conv1.weight"], STATE["conv1.weight"])
    if other is None:
        assert notes == [f"loaded 56 of 56 tensors from {tmp_path / 'w.pth'}"]
        return
    assert f"w.pth, {taken}; it also holds " in notes[0]
    assert f"{other}' (averaged weights), see --weights-entry" in notes[0]
    load_pretrained(model, tmp_path / "w.pth", fresh_head=False, entry=other)
    assert torch.equal(model.state_dict()["conv1.weight"], OTHER["conv1.weight"])
    with pytest.raises(UsageError, match=r"holds no weights by --weights-entry emo; allowed: .*averaged weights"):
        load_pretrained(model, tmp_path / "w.pth", entry="emo")


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        ({"epoch": 9, "model_ema": STATE}, ["loaded 56 of 56 tensors from w.pth, 'model_ema' (averaged weights)"]),
        (before("encoder.backbone.", STATE), ["loaded 56 of 56 tensors from w.pth, 'encoder.backbone'"]),
        ({"state_dict": before("net.", STATE)}, ["loaded 56 of 56 tensors from w.pth"]),
        (
            {"state_dict": {**before("model.", STATE), "criterion.weight": torch.ones(4)}},
            [
                "loaded 56 of 56 tensors from w.pth",
                "left out 'criterion.weight', which does not belong to the model",
            ],
        ),
        (
            {"n_averaged": torch.tensor(1), "steps": torch.tensor(1), **before("module.", STATE)},
            [
                "loaded 56 of 56 tensors from w.pth",
                "left out 'n_averaged' and 1 more, which do not belong to the model",
            ],
        ),
    ],
)
def test_what_stands_around_the_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, notes: list[str]
) -> None:
    """Averages alone, a prefix that all names share, what a loss or an average keeps for itself."""
    monkeypatch.chdir(tmp_path)
    torch.save(content, "w.pth")
    model = network()
    assert load_pretrained(model, Path("w.pth"), fresh_head=False) == notes
    assert torch.equal(model.state_dict()["conv1.weight"], STATE["conv1.weight"])


def test_refusals_name_prefixes_and_strangers(tmp_path: Path) -> None:
    """Several that fit, none that fits, and names that the model lacks; never classes that are "none"."""
    for content, message in (
        (before("student.", STATE) | before("teacher.", OTHER), "choose with --weights-entry: 'student', 'teacher'"),
        (
            {"a": torch.ones(1)},
            r"no tensor by a name of SmallResNet: its first is 'a', and SmallResNet begins with 'con",
        ),
        (
            STATE | {"aux.weight": torch.ones(1), "aux.bias": torch.ones(1)},
            "holds 'aux.weight' and 1 more, which Small",
        ),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(EmqError, match=message):
            load_pretrained(network(), tmp_path / "w.pth", fresh_head=False)


def test_learned_steps_in_a_run_s_weights_are_left_out(tmp_path: Path) -> None:
    """Fine-tuning and baselines start from the float weights of an LSQ run, whatever its quantizers learned."""
    path = safetensors_file({**STATE, "stage1.0.conv1.quantizer.step": torch.ones(2, 1)}, tmp_path / "latent")
    model = network()
    assert load_pretrained(model, path) == [f"loaded {len(STATE)} of {len(STATE)} tensors from {path}"]


def test_other_names_in_the_same_order(tmp_path: Path) -> None:
    """The same network by another author: tensors are taken one after the other, which is said; not out of order."""
    renamed = {f"_part{index}.{name.rpartition('.')[2]}": tensor for index, (name, tensor) in enumerate(STATE.items())}
    model, path = network(), tmp_path / "w.pth"
    torch.save(renamed, path)
    notes = load_pretrained(model, path)
    for name, tensor in model.state_dict().items():
        assert "num_batches" in name or torch.equal(tensor, STATE[name])
    assert "were taken so, '_part0.weight' as 'conv1.weight'" in notes[1]
    assert Pretrained.find(network(classes=3), path).classes(model) == 10
    backwards = dict(reversed(renamed.items()))
    torch.save(backwards, path)
    with pytest.raises(EmqError, match="holds no tensor by a name of SmallResNet"):
        load_pretrained(network(), path)
