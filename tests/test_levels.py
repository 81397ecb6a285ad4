"""Full levels: every code of uint8 and int8 in use, exact where a kernel can be, and refused by name elsewhere."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from emqdeploy.errors import EmqError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.child import Child
from emqdeploy.format.emq import load_checkpoint, save_checkpoint
from emqdeploy.format.grid import HIGHEST_ZERO
from emqdeploy.format.levels import FULL, HALF, Levels
from emqdeploy.graph.reference import IntegerReference, quantized_tensors
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import freeze
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.skeleton import export_skeleton
from emqdeploy.runtimes import machine
from emqdeploy.runtimes.adapters import openvino_runtime
from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.adapters.torch_reference import TorchRuntime
from emqdeploy.runtimes.native_library import library_path
from emqdeploy.workflows.export import export
from emqdeploy.workflows.verify import verify

from .conftest import Deployed, deploy

EXACT_KERNELS = "session.x64quantprecision"
TWO, FOUR, EIGHT, NARROW = Child.of(2), Child.of(4), Child.of(8), Child.of(2, 3)


@functools.cache
def deployed(model: str, levels: Levels = FULL) -> Deployed:
    """A network with random weights, some of whose tensors are signed."""
    return deploy(NetworkSpec(model, 10, (1, 8, 8), 2.0, (TWO, FOUR, EIGHT), insertion=InsertionConfig(levels=levels)))


@functools.cache
def shifted(model: str) -> Deployed:
    """The same with zero in other places than the middle, the outermost among them, and a child of narrow tensors."""
    spec = NetworkSpec(model, 10, (1, 8, 8), 2.0, (NARROW, FOUR, EIGHT), insertion=InsertionConfig(levels=FULL))
    subject = deploy(spec)
    signed = [site for site in subject.network.sites.values() if site.signed]
    for site, zero in zip(signed, itertools.cycle((HIGHEST_ZERO, 1, 40, 150)), strict=False):
        site.zero_point = zero
    frozen = freeze(subject.network, subject.network.known)
    skeleton = export_skeleton(subject.network, frozen, spec.input_shape)
    return replace(subject, checkpoint=replace(subject.checkpoint, network=frozen, skeleton=skeleton))


@pytest.mark.parametrize("make", [deployed, shifted])
@pytest.mark.parametrize("model", ["resnet8", "preact-resnet8", "mobilenet-micro"])
def test_full_levels_are_exact(model: str, make: Callable[[str], Deployed]) -> None:
    """Not one code differs between the integer reference and onnxruntime, and codes above 127 do occur."""
    subject = make(model)
    checkpoint = subject.checkpoint
    tensors = quantized_tensors(checkpoint.skeleton)
    for child in (checkpoint.network.children[0], EIGHT):
        arrays = checkpoint.network.initializers(child)
        logits, codes = IntegerReference(checkpoint.skeleton, arrays).run(subject.images)
        found, traced = OnnxRuntime(checkpoint, [child], threads=1, trace=tensors).run_traced(subject.images)
        for name in tensors:
            np.testing.assert_array_equal(traced[name], codes[name], err_msg=name)
        np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5 * np.ptp(logits))
        np.testing.assert_allclose(TorchRuntime(checkpoint, [child])(subject.images), logits, atol=0.1 * np.ptp(logits))
        if child == NARROW:
            continue
        unsigned = [name for name, site in checkpoint.network.sites.items() if not site.signed]
        assert max(codes[f"{name}/codes"].max() for name in unsigned if f"{name}/codes" in codes) > 127
        signed = {name for name, site in checkpoint.network.sites.items() if site.signed}
        layers = checkpoint.network.layers.items()
        assert max(abs(arrays[f"{name}.weight"].astype(int)).max() for name, one in layers if one.site in signed) > 64


def test_half_levels_stay_below_what_saturates() -> None:
    """What every kernel computes exactly: two products of codes and weights fit 16 bits."""
    network = deployed("mobilenet-micro", HALF).checkpoint.network
    for name, layer in network.layers.items():
        site = network.sites[layer.site]
        for child in network.children:
            reach = site.code_range(child).high * np.abs(layer.integers(child).astype(int)).max()
            assert 2 * reach <= 2**15 - 1, name


@pytest.mark.parametrize("make", [deployed, shifted])
def test_a_file_keeps_its_levels(make: Callable[[str], Deployed], tmp_path: Path) -> None:
    """They are read from the card, and a card that says something else is not written; codes of zero are kept."""
    checkpoint = make("resnet8").checkpoint
    save_checkpoint(tmp_path / "full.emq", checkpoint)
    again = load_checkpoint(tmp_path / "full.emq")
    assert again.card.levels == again.card.exported().levels == FULL
    for child in again.network.children:
        arrays, others = checkpoint.network.initializers(child), again.network.initializers(child)
        assert all(np.array_equal(arrays[name], others[name]) for name in arrays)
    assert again.network.sites == checkpoint.network.sites
    half = deployed("resnet8", HALF).checkpoint
    sites = {name: replace(site, zero_point=40 if site.signed else None) for name, site in half.network.sites.items()}
    save_checkpoint(tmp_path / "half.emq", replace(half, network=replace(half.network, sites=sites)))
    with pytest.raises(EmqError, match="has a zero point, which only signed ones at full levels have"):
        load_checkpoint(tmp_path / "half.emq")
    with pytest.raises(ValueError, match="the card says half levels"):
        save_checkpoint(tmp_path / "mixed.emq", replace(checkpoint, card=half.card))


@pytest.mark.skipif(library_path() is None, reason="emqdeploy-native is not installed")
@pytest.mark.parametrize("make", [deployed, shifted])
def test_native_kernels_are_for_half_levels(make: Callable[[str], Deployed]) -> None:
    """The network is refused when it is opened, with the way out."""
    with pytest.raises(EmqError, match=r"all levels of a byte \(--levels full\).* run this network in onnxruntime"):
        NativeRuntime(make("resnet8").checkpoint)


@pytest.mark.parametrize("levels", [HALF, FULL])
def test_onnxruntime_is_asked_for_exact_kernels(levels: Levels, tmp_path: Path) -> None:
    """By every way in which a network is opened; on a processor without VNNI it would saturate, without a word."""
    checkpoint = deployed("resnet8", levels).checkpoint
    save_checkpoint(tmp_path / "model.emq", checkpoint)
    export(ExportSettings(tmp_path, "2,8", selector="if"))
    opened = [
        OnnxRuntime(checkpoint, [EIGHT], threads=1),
        *(OnnxRuntime.open_file(file, threads=1) for file in sorted((tmp_path / "bundle").glob("*.onnx"))),
    ]
    assert len(opened) == 4
    for runtime in opened:
        session: onnxruntime.InferenceSession = runtime._engine(runtime.children[-1]).session  # type: ignore[attr-defined]
        options = session.get_session_options()
        if levels == FULL:
            assert options.get_session_config_entry(EXACT_KERNELS) == "1"
        else:
            with pytest.raises(RuntimeError, match=EXACT_KERNELS):
                options.get_session_config_entry(EXACT_KERNELS)


def test_openvino_computes_every_code_of_zero() -> None:
    """To its roundings, which are not all ours; where it adds two products in int16 it refuses, see below."""
    if machine.saturates():
        pytest.skip("OpenVINO saturates on this processor")
    subject = shifted("preact-resnet8")
    arrays = subject.checkpoint.network.initializers(EIGHT)
    logits, _ = IntegerReference(subject.checkpoint.skeleton, arrays).run(subject.images)
    found = openvino_runtime.OpenVinoRuntime(subject.checkpoint, [EIGHT], threads=1)(subject.images)
    np.testing.assert_allclose(found, logits, rtol=0, atol=0.05 * np.ptp(logits))


@pytest.mark.parametrize(
    ("processor", "flags", "saturates"),
    [("x86_64", ["avx2", "avx512f"], True), ("AMD64", ["avx2", "avx_vnni"], False), ("aarch64", ["asimddp"], False)],
)
def test_where_products_are_added_in_int16(
    processor: str, flags: list[str], saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On x86 without VNNI and nowhere else."""
    monkeypatch.setattr(machine, "environment", lambda: {"machine": processor, "cpu_flags": flags})
    assert machine.saturates() == saturates


def test_openvino_refuses_where_it_would_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half levels open there as ever."""
    monkeypatch.setattr(openvino_runtime, "saturates", lambda: True)
    with pytest.raises(EmqError, match=r"no VNNI.*--runtime onnxruntime, or quantize with --levels half"):
        openvino_runtime.OpenVinoRuntime(deployed("resnet8").checkpoint, threads=1)
    openvino_runtime.OpenVinoRuntime(deployed("resnet8", HALF).checkpoint, [EIGHT], threads=1)


@pytest.mark.parametrize("make", [deployed, shifted])
def test_tensorrt_gets_the_network_at_half_levels(make: Callable[[str], Deployed], tmp_path: Path) -> None:
    """Its int8 has no zero point: it computes a coarser network, and export and verify prove its files against that."""
    subject = make("resnet8")
    save_checkpoint(tmp_path / "model.emq", subject.checkpoint)
    said: list[str] = []
    (made,) = export(ExportSettings(tmp_path, "8", target="tensorrt-onnx"), said.append)["artefacts"]
    assert "tensorrt-onnx has 128 of 256 levels for what is never negative; proven is that network" in said
    # The form is compared as written, in float between the quantizers, where ties may round the other way.
    assert made["parity"]["differing_codes"] <= 1e-3 * made["parity"]["codes"]
    (entry,) = verify(tmp_path / "bundle")["results"]
    assert entry["rungs"]["tensorrt-onnx-w8"]["wrong"] is None
    assert entry["ok"]
    network = subject.checkpoint.network
    coarse = network.at_half_levels()
    steps = {name: (site.scales[EIGHT], coarse.sites[name].scales[EIGHT]) for name, site in network.sites.items()}
    assert any(wide > narrow for narrow, wide in steps.values())
    for name, (narrow, wide) in steps.items():
        fine, half = network.sites[name].code_range(EIGHT), coarse.sites[name].code_range(EIGHT)
        ends = [fine.steps * narrow / (half.steps * wide)]
        if half.below:
            ends.append(fine.below * narrow / (half.below * wide))
        assert max(ends) == pytest.approx(1)  # one end reaches as far as before, and the other no less far
        assert half.zero_point == (128 if network.sites[name].signed else 0)
