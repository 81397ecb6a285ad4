"""`emqdeploy mix`: budgets, what they are counted in, and a mixed child that goes wherever children go."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emqdeploy.cli import main
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.child import Child
from emqdeploy.format.emq import load_checkpoint, read_card, save_checkpoint
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.native_library import library_path
from emqdeploy.training.mixing.descent import Costs
from emqdeploy.workflows import export as export_workflow
from emqdeploy.workflows.export import export
from emqdeploy.workflows.mixing.budgets import Budget, read_budgets
from emqdeploy.workflows.mixing.costs.base import COSTS, Subject
from emqdeploy.workflows.mixing.searching import Front
from emqdeploy.workflows.mixing.settings import MixSettings
from emqdeploy.workflows.verify import verify

from ..conftest import Deployed

EIGHT = Child.of(8)
BENCH = ("--scenario", "single", "--samples", "5", "--limit", "20", "--energy", "none", "--threads", "1")
PROVEN_ON = 40
"""Images that an export is proven on; the usual number is that of a real network."""


def settings(path: Path, budget: str, **others: object) -> MixSettings:
    """A quick search: few images, few mixes of the front."""
    quick = {"images": 64, "points": 2, "test_images": 100, "threads": 1} | others
    return MixSettings(path, read_budgets(budget), **quick)  # type: ignore[arg-type]


# --- budgets ------------------------------------------------------------------------------------------------------


def test_budgets_are_read_with_their_units() -> None:
    """Names of children say what they were made for."""
    found = read_budgets("size=60%, size=2MB,bitops=1.5G,latency=8ms,size=4bits")
    assert [str(one) for one in found] == ["size=60%", "size=2MB", "bitops=1.5G", "latency=8ms", "size=4bits"]
    assert [one.child for one in found][:3] == ["mix-size-60", "mix-size-2MB", "mix-bitops-1.5G"]
    limits = [one.limit(1000.0, lambda bits: 100.0 * bits) for one in found]
    assert limits == [600, 2e6, 1.5e9, 8, 400]
    assert read_budgets(found) == found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--budget is empty; for example size=60%"),
        ("size", "--budget has 'size'; give bitops, latency, size and a value"),
        ("speed=3", "--budget has 'speed=3'; give bitops, latency, size"),
        ("size=60", "--budget has 'size=60'; units of size: %, bits, B"),
        ("size=8ms", "--budget has 'size=8ms'; units of size: %, bits, B"),
        ("latency=0ms", "it must be more than 0"),
        ("size=9bits", "allowed: 1bits..8bits"),
        ("size=1e999%", "give bitops, latency, size and a value"),
        ("size=60%,size=60.0%", "--budget has size=60% twice; give each once"),
    ],
)
def test_a_budget_that_is_none_is_refused(text: str, sentence: str) -> None:
    """With what is allowed."""
    with pytest.raises(UsageError) as error:
        read_budgets(text)
    assert sentence in str(error.value)


def test_the_first_mix_that_costs_no_more_meets_a_budget() -> None:
    """One that none meets is refused by how much."""
    costs = Costs(100, {"a": {2: 200, 8: 800}, "b": {2: 20, 8: 80}})
    front = Front("size", costs, [{"a": 8, "b": 8}, {"a": 2, "b": 8}, {"a": 2, "b": 2}])
    assert front.meet(Budget("size", 380, "B")) == {"a": 2, "b": 8}
    assert front.meet(Budget("size", 379, "B")) == {"a": 2, "b": 2}
    assert front.meet(Budget("size", 2, "bits")) == {"a": 2, "b": 2}
    assert front.meet(Budget("size", 100, "%")) == {"a": 8, "b": 8}
    with pytest.raises(UsageError, match=r"which is 294 B: the narrowest mix takes 320 B \(32.7 %.*, 26 B more"):
        front.meet(Budget("size", 30, "%"))
    with pytest.raises(UsageError, match="a budget of 4bits needs that width in the file; layer 'a' has 2, 8"):
        front.meet(Budget("size", 4, "bits"))
    assert front.spread(2) == [{"a": 2, "b": 8}, {"a": 2, "b": 2}]


# --- costs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(small: Deployed) -> Subject:
    """A network whose layers all multiply seven times."""
    layers = small.checkpoint.network.layers
    sites = {name: None for name in layers}
    return Subject(small.checkpoint, EIGHT, dict.fromkeys(layers, 7), sites, threads=1)


def test_a_size_is_what_the_file_reads(small: Deployed, subject: Subject, tmp_path: Path) -> None:
    """From one uniform child to the next narrower one the file saves just what the model says, padding aside."""
    save_checkpoint(tmp_path / "model.emq", small.checkpoint)
    sizes = read_card(tmp_path / "model.emq")[1]
    offer = dict.fromkeys(small.network.switchable, (2, 4, 8))
    costs = COSTS["size"]().costs(subject, offer)
    for wide, narrow in ((8, 4), (4, 2)):
        saved = costs.of(dict.fromkeys(offer, wide)) - costs.of(dict.fromkeys(offer, narrow))
        read = sizes[Child.of(wide)] - sizes[Child.of(narrow)]
        assert 0 <= read - saved <= (wide - narrow) * 64 * len(offer)
    # A layer that is not mixed costs what it has at the widest child.
    rest = COSTS["size"]().costs(subject, {})
    assert rest.rest == costs.of(dict.fromkeys(offer, 8))


def test_bit_operations_are_products_of_both_widths(small: Deployed, subject: Subject) -> None:
    """Seven multiplications of each of two layers at 4 and 2 bits, with 8-bit activations, and the rest at 8."""
    one, two, *_ = small.network.switchable
    costs = COSTS["bitops"]().costs(subject, {one: (2, 4), two: (2, 8)})
    assert costs.of({one: 4, two: 2}) == 7 * 8 * (4 + 2 + 8 * (len(small.network.layers) - 2))


@pytest.mark.skipif(library_path() is None, reason="emqdeploy-native is not installed")
def test_latency_is_that_of_the_widest_child_and_differences_to_it(small: Deployed, subject: Subject) -> None:
    """What layers do not explain is the same for every mix, and nothing of it is negative."""
    offer = dict.fromkeys(small.network.switchable, (2, 8))
    costs = COSTS["latency"]().costs(subject, offer)
    assert 0 < costs.of(dict.fromkeys(offer, 8)) < 1000
    assert all(taken > 0 for by_width in costs.layers.values() for taken in by_width.values())


def test_latency_without_the_library_is_refused_in_one_sentence(
    small: Deployed, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to install."""
    from emqdeploy.runtimes import native_library

    native_library.library.cache_clear()
    monkeypatch.setattr(native_library, "library_path", lambda: None)
    with pytest.raises(EmqError, match=r"in the native kernels: emqdeploy_native is not installed.*pip install"):
        COSTS["latency"]().costs(subject, {})


# --- the whole ----------------------------------------------------------------------------------------------------


def test_a_mixed_child_goes_where_children_go(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two budgets from the command line; export, verify with no differing code, use and bench take it by name."""
    monkeypatch.setattr(export_workflow, "PARITY_IMAGES", PROVEN_ON)
    run = tmp_path / "run"
    shutil.copytree(digits.parent, run)
    before = load_checkpoint(run / "model.emq").network
    quick = ["--images", "64", "--points", "2", "--test-images", "100", "--threads", "1", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["mix", str(run), "--budget", "size=60%", "--budget", "bitops=50%,size=100%", *quick])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["children"]] == ["mix-size-60", "mix-bitops-50", "8"]
    assert "size=100% is met by child 8 as it is" in result["notes"]
    assert {Path(file).name for file in result["files"]} == {"mix.png", "mix.svg"}
    for row in result["children"][:2]:
        kind = row["budget"].partition("=")[0]
        assert row["cost"] <= row["limit"] == pytest.approx(result["whole"][kind] * (0.6 if kind == "size" else 0.5))
        assert row["accuracy"] > 50
    checkpoint = load_checkpoint(run / "model.emq")
    mixed = checkpoint.network.find("mix-size-60")
    assert not mixed.uniform
    for child in before.children:
        for name, array in before.initializers(child).items():
            np.testing.assert_array_equal(checkpoint.network.initializers(child)[name], array)
    assert checkpoint.card.provenance["mixes"]["mix-size-60"]["descent"] == "sorted"
    export(ExportSettings(run, "mix-size-60", data="digits"))
    proof = verify(run, "mix-size-60", count=8)
    (entry,) = proof["results"]
    assert proof["ok"], entry
    assert entry["rungs"]["onnxruntime"]["differing_codes"] == 0 < entry["rungs"]["onnxruntime"]["codes"]
    assert entry["rungs"]["onnx-mix-size-60"]["max_logit_error"] == 0
    assert "native" in {*entry["rungs"], *entry["skipped"]}
    assert entry["rungs"].get("native", {"differing_codes": 0})["differing_codes"] == 0
    with open_runtime(checkpoint) as runtime:
        runtime.use("mix-size-60")
        assert runtime.child == mixed
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(run), "--bits", "mix-size-60", *BENCH, "--json"])
    assert ended.value.code == 0
    children = {row["child"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert children - {None} == {"mix-size-60"}  # what it is compared with is no child
    # Asked for again, it makes way; elsewhere, the file stays as it is.
    with pytest.raises(SystemExit) as ended:
        main(["mix", str(run), "--budget", "size=60%", "--descent", "gain", "--out", str(tmp_path / "new.emq"), *quick])
    again = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert "child mix-size-60 of the file was replaced" in again["notes"]
    assert load_checkpoint(tmp_path / "new.emq").card.provenance["mixes"]["mix-size-60"]["descent"] == "gain"
    assert load_checkpoint(run / "model.emq").card.provenance["mixes"]["mix-size-60"]["descent"] == "sorted"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"budget": "size=5%"}, r"nothing meets size=5%, .* kB more; raise the budget"),
        ({"keep": ("nowhere",)}, r"--keep names layer 'nowhere', which the network does not have; layers: stage1"),
        ({"keep": ("conv1",)}, r"--keep names layer 'conv1', which has 8 bits at every child; leave it out"),
        ({"widths": (8,)}, r"there is nothing to mix: the file has only 1, 2, 3, 4, 5, 6, 7, 8 bits"),
        ({"images": 20}, r"--images is 20; the sensitivity estimate needs 64 or more"),
        ({"sensitivity": "accuracy"}, r"--images is 64; the sensitivity estimate needs 256 or more"),
        ({"sensitivity": "loudness"}, r"unknown sensitivity 'loudness'; known: accuracy, sqnr"),
        ({"out": Path("elsewhere")}, r"--out is elsewhere; name a file that ends in \.emq"),
        ({"descent": "steep"}, r"unknown descent 'steep'; known: gain, sorted"),
    ],
)
def test_what_cannot_be_is_refused(digits: Path, asked: dict[str, object], sentence: str) -> None:
    """Before anything is measured, in one sentence, and nothing is written."""
    from emqdeploy.workflows.mixing.mix import mix

    before = digits.read_bytes()
    with pytest.raises(EmqError, match=sentence):
        mix(settings(digits, **{"budget": "size=60%", **asked}))  # type: ignore[arg-type]
    assert digits.read_bytes() == before


def test_too_few_images_are_refused_by_their_number(digits: Path, tmp_path: Path) -> None:
    """Twenty pictures tell nothing of seven layers."""
    from PIL import Image

    from emqdeploy.workflows.mixing.mix import mix

    for number in range(20):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * number).save(folder / f"{number}.png")
    with pytest.raises(EmqError, match=r"has 16 training images; the sensitivity estimate needs 64 or more"):
        mix(settings(digits, "size=60%", data=f"imagefolder:{tmp_path / 'photos'}"))
    with pytest.raises(UsageError, match=r"--sensitivity accuracy needs labels, .* take --sensitivity sqnr"):
        mix(settings(digits, "size=60%", data=f"imagefolder:{tmp_path / 'photos'}", sensitivity="accuracy"))


def test_a_file_with_one_width_has_nothing_to_mix(digits: Path, tmp_path: Path) -> None:
    """It says what to make first; and an exported file is sealed."""
    from emqdeploy.workflows.mixing.mix import mix

    checkpoint = load_checkpoint(digits, 8)
    save_checkpoint(tmp_path / "model.emq", replace(checkpoint, card=checkpoint.card.only(checkpoint.network.children)))
    with pytest.raises(UsageError, match="the file has only 8 bits; quantize or train with --bits 2-8"):
        mix(settings(tmp_path, "size=60%"))
    export(ExportSettings(tmp_path, "8", data="digits"))
    with pytest.raises(UsageError, match="belongs to an export, which is sealed"):
        mix(settings(tmp_path / "bundle", "size=60%"))
