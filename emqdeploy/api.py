"""The Python interface: what the commands do, under their names, with results that show themselves in a notebook.

Every function takes the options of its command, with underscores for dashes; a list of bit-widths may be a list.
`import emqdeploy` loads none of this: ``emqdeploy.bench(...)`` does, on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emqdeploy.data.splits import Split
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import Child, ChildLike
from emqdeploy.measuring.rows import BenchRow, rows_of
from emqdeploy.options import nearest, options_of
from emqdeploy.progress import Report, silent
from emqdeploy.report.shown import Shown
from emqdeploy.runtimes.base import Runtime

Where = str | Path
Children = str | Sequence[ChildLike]


class TrainResult(Shown):
    """What `train` made.

    Attributes:
        run: the run directory.
        checkpoint: its ``.emq``; None where the run has several or none.
        accuracy: percent of the test set, by child.
        values: everything that ``emqdeploy train --json`` prints.
    """

    @property
    def run(self) -> Path:
        """The run directory."""
        return Path(self.values["run"])

    @property
    def checkpoint(self) -> Path | None:
        """Its ``.emq``; None where the run has several or none."""
        found = self.values["checkpoints"]
        return Path(found[0]) if len(found) == 1 else None

    @property
    def accuracy(self) -> dict[str, float]:
        """Percent of the test set, by child."""
        return dict(self.values["accuracy"])


class QuantizeResult(Shown):
    """What `quantize` made: ``values`` is what ``emqdeploy quantize --json`` prints."""

    @property
    def checkpoint(self) -> Path:
        """The ``.emq``."""
        return Path(self.values["checkpoint"])

    @property
    def accuracy(self) -> dict[str, float]:
        """Percent of the test set, by child; empty where the labels are unknown."""
        return dict(self.values["accuracy"])

    @property
    def float_accuracy(self) -> float | None:
        """Percent of the test set, of the model as it came; None where the labels are unknown."""
        found: float | None = self.values["float_accuracy"]
        return found

    @property
    def usable(self) -> list[str]:
        """The children that are as good as the float model, within the allowed loss."""
        return list(self.values["usable"])


class MixResult(Shown):
    """What `mix` found: the front, the layers, and a child for every budget; shown, it is the tables."""

    @property
    def checkpoint(self) -> Path:
        """The file that the children were written into."""
        return Path(self.values["checkpoint"])

    @property
    def children(self) -> tuple[str, ...]:
        """Names of the children, one per budget that the widest one does not meet."""
        return tuple(child["name"] for child in self.values["children"])


class ExportResult(Shown):
    """What `export` wrote: ``values`` is what ``emqdeploy export --json`` prints."""

    @property
    def bundle(self) -> Path:
        """The directory."""
        return Path(self.values["bundle"])

    @property
    def files(self) -> dict[str, Path]:
        """The files that were added, by their id in the bundle."""
        return {one["id"]: Path(one["path"]) for one in self.values["artefacts"]}


class VerifyResult(Shown):
    """What `verify` found: ``values`` is what ``emqdeploy verify --json`` prints. It is true where nothing is wrong."""

    @property
    def ok(self) -> bool:
        """Whether every way to run every child answers as it should."""
        return bool(self.values["ok"])

    def __bool__(self) -> bool:
        """As `ok`."""
        return self.ok

    @property
    def wrong(self) -> dict[str, dict[str, str]]:
        """What is wrong, in words, by child and rung; empty as it should be."""
        found = {}
        for entry in self.values["results"]:
            judged = entry["rungs"] | ({} if entry["origin"] is None else {entry["origin"]["against"]: entry["origin"]})
            faults = {name: rung["wrong"] for name, rung in judged.items() if rung["wrong"] is not None}
            if faults | entry["failed"]:
                found[entry["child"]] = faults | entry["failed"]
        return found


class BenchResult(Shown):
    """What `bench` measured: ``values`` is what ``emqdeploy bench --json`` prints."""

    @property
    def rows(self) -> list[BenchRow]:
        """A row for every child and form, in the order of the table."""
        return rows_of(self.values)

    @property
    def complete(self) -> bool:
        """False where it was interrupted or a scenario failed."""
        return bool(self.values["complete"])

    def save(self, path: Where) -> None:
        """Writes ``.json`` (every sample in it), ``.csv`` or ``.html`` (a report that opens offline)."""
        from emqdeploy.measuring.result import save_result
        from emqdeploy.report.bench_csv import save_csv
        from emqdeploy.report.html.page import save_html

        writers = {".json": save_result, ".csv": save_csv, ".html": save_html}
        write = writers.get(Path(path).suffix)
        if write is None:
            raise UsageError(f"{path} ends with none of {', '.join(writers)}; the ending says what is written")
        write(Path(path), self.values)


def train(
    *, recipe: str | None = None, config: Where | None = None, out: Where | None = None, resume: str | None = None,
    **options: Any,
) -> TrainResult:  # fmt: skip
    """Trains one network for several children, as ``emqdeploy train`` does; progress goes to standard error.

    Args:
        recipe: a recipe by name; ``emqnet`` by default.
        config: a TOML file of options.
        out: the run directory; ``runs/DATA-MODEL-NNN`` by default.
        resume: a run to go on with.
        **options: as the command has them: ``data``, ``model``, ``bits``, ``epochs``, ``lr``, ...

    Raises:
        EmqError: one sentence; also where the deployed network is another one than was trained.

    Example:
        >>> result = emqdeploy.train(data="digits", bits=[2, 4, 8], epochs=3)  # doctest: +SKIP
    """
    from emqdeploy.report.training_table import training_parts, training_values
    from emqdeploy.training.choices import option_classes
    from emqdeploy.training.command import train_from_flags
    from emqdeploy.training.settings import CommonOptions

    _check_options(options, [CommonOptions, *option_classes()], ("method", "quantizer"))
    done = train_from_flags(options, recipe, _path(config), _path(out), resume)
    if done is None:
        raise EmqError("only the first of several processes has a result; call train in a process of its own")
    values = training_values(done[1])
    if done[1].wrong:
        raise EmqError(done[1].wrong)
    return TrainResult(values, training_parts(done[0], done[1], values))


def quantize(
    file: Where, *, data: str, model: str | None = None, out: Where | None = None, threads: int | None = None,
    report: Report = silent, **options: Any,
) -> QuantizeResult:  # fmt: skip
    """Makes a checkpoint of a trained float model, without training, as ``emqdeploy quantize`` does.

    Args:
        file: a float network (``.onnx``), float weights, or a run directory.
        data: the data set; its training images calibrate, its test images measure accuracy.
        model: the model that weights belong to; an ``.onnx`` file is its own.
        out: the directory; ``runs/DATA-MODEL-NNN`` by default.
        threads: torch's threads.
        report: receives a line about what is being done.
        **options: as the command has them: ``bits``, ``images``, ``reconstruct``, ``mean``, ``image_size``, ...

    Raises:
        EmqError: one sentence; also where the 8-bit child answers unlike the float model: nothing is written then.
    """
    from emqdeploy.format.runs import RUNS_ROOT, next_run_path
    from emqdeploy.options import from_flags
    from emqdeploy.report.quantize_values import quantize_parts, quantize_values
    from emqdeploy.training.posttraining.config import QuantizeConfig
    from emqdeploy.training.posttraining.quantize import advice
    from emqdeploy.training.posttraining.quantize import quantize as run

    _check_options(options, [QuantizeConfig])
    config = QuantizeConfig(Path(file), model, data, **from_flags(QuantizeConfig, options))
    place = _path(out) or next_run_path(RUNS_ROOT, data, model or Path(file).stem)
    made = run(config, place, report, threads)
    if made.checkpoint is None:
        raise EmqError(str(made.wrong))
    hint = advice(config, made, options.get("children")) if made.wrong is None else ""
    return QuantizeResult(quantize_values(config, made), quantize_parts(config, made, hint))


def mix(path: Where | None = None, *, budget: str, report: Report = silent, **options: Any) -> MixResult:
    """Finds a width for every layer under budgets, without training, as ``emqdeploy mix`` does.

    Args:
        path: a run or an ``.emq``; the latest run by default.
        budget: ``size=60%``, ``bitops=50%``, ``latency=8ms``, ``size=4bits``, or several by commas.
        report: receives a line about what is being done.
        **options: as the command has them: ``data``, ``images``, ``descent``, ``widths``, ``keep``, ...

    Raises:
        EmqError: one sentence: a budget that nothing meets, for example.
    """
    from emqdeploy.options import from_flags
    from emqdeploy.report.mixing import mix_parts
    from emqdeploy.workflows.mixing.mix import mix as run
    from emqdeploy.workflows.mixing.settings import MixSettings

    _check_options(options, [MixSettings])
    values = run(MixSettings(_path(path), **from_flags(MixSettings, options | {"budget": budget})), report)
    return MixResult(values, mix_parts(values))


def export(
    path: Where | None = None, *, bits: Children | int | None = None, target: str = "onnx", out: Where | None = None,
    report: Report = silent, **options: Any,
) -> ExportResult:  # fmt: skip
    """Writes proven files of some children into a bundle, as ``emqdeploy export`` does.

    Args:
        path: a run, an ``.emq`` or a bundle; the latest run by default.
        bits: the children; every trained one by default.
        target: ``onnx``, ``openvino``, ``tensorrt``, ...
        out: the bundle; ``bundle`` beside the checkpoint by default.
        report: receives a line about what is being done.
        **options: as the command has them: ``storage``, ``selector``, ``with_baselines``, ``test_images``, ...

    Raises:
        EmqError: one sentence: a file answers otherwise than the integer reference, and was not kept, for example.
    """
    from emqdeploy.exporters.settings import ExportSettings
    from emqdeploy.options import from_flags
    from emqdeploy.report.export_table import export_parts
    from emqdeploy.workflows.export import export as run

    _check_options(options, [ExportSettings])
    settings = ExportSettings(_path(path), _listed(bits), target, _path(out), **from_flags(ExportSettings, options))
    values = run(settings, report)
    return ExportResult(values, export_parts(values))


def verify(
    path: Where | None = None, *, bits: Children | int | None = None, images: int | None = None,
    data: str | None = None, data_dir: Where | None = None, model: str | None = None, pretrained: Where | None = None,
    report: Report = silent,
) -> VerifyResult:  # fmt: skip
    """Compares every way to run a network with the integer reference, as ``emqdeploy verify`` does.

    Args:
        path: a run, an ``.emq`` or a bundle; the latest run by default.
        bits: the children; all by default, of a bundle the exported ones.
        images: how many test images; all by default.
        data: other images than those of the network's own data set.
        data_dir: where the data set's files lie.
        model: your own ``pkg.module:function``, named again: a file may not have it imported.
        pretrained: the float weights that the network was made from.
        report: receives a line about what is being done.

    Returns:
        The findings; true where nothing is wrong.
    """
    from emqdeploy.report.verify_table import verify_parts
    from emqdeploy.workflows.verify import verify as run

    values = run(
        _path(path), _listed(bits), images, _path(data_dir), model, _path(pretrained), report=report, data=data
    )
    return VerifyResult(values, verify_parts(values))


def bench(
    path: Where | None = None, *, bits: Children | int | None = None, report: Report = silent, **options: Any
) -> BenchResult:
    """Measures latency, accuracy, size, memory and switching of every child here, as ``emqdeploy bench`` does.

    Args:
        path: a run, an ``.emq``, a bundle or an exported ``.onnx`` file; the latest run by default.
        bits: the children; all by default.
        report: receives a line about what is being done.
        **options: as the command has them: ``device``, ``runtime``, ``scenario``, ``samples``, ``threads``, ...
    """
    from emqdeploy.measuring.bench import bench as run
    from emqdeploy.measuring.settings import BenchSettings
    from emqdeploy.options import from_flags
    from emqdeploy.report.bench_table import bench_parts

    _check_options(options, [BenchSettings])
    given = options | {"bits": None if bits is None else _text(bits)}
    values = run(BenchSettings(path=None if path is None else str(path), **from_flags(BenchSettings, given)), report)
    return BenchResult(values, bench_parts(values))


def load(
    path: Where | None = None, bits: Children | int | None = None, runtime: str = "onnxruntime",
    threads: int | None = None, **options: Any,
) -> Runtime:  # fmt: skip
    """Opens a network to run it here and to switch its child; needs no torch.

    Args:
        path: a bundle, a run, an ``.emq`` or an exported ``.onnx`` file; the latest run by default.
        bits: the children to keep ready; by default those that were exported, of a checkpoint all.
        runtime: ``onnxruntime``, ``openvino``, ``tensorrt``, ``native`` or ``torch``.
        threads: threads inside an operator; every core by default.
        **options: ``residency``, and those of the runtime.

    Example:
        >>> with emqdeploy.load("bundle", bits=[2, 8]) as network:  # doctest: +SKIP
        ...     network.use(2)
        ...     logits = network.run(network.preprocess(frame))
    """
    from emqdeploy.runtimes.source import open_source

    return open_source(path, _listed(bits), runtime, threads, **options).runtime


def sample_images(path: Where | None = None, data: str | None = None, data_dir: Where | None = None) -> Split:
    """Returns labelled test images for a network: ``images`` uint8 ``(N, C, H, W)`` and ``labels``.

    Args:
        path: the network; the latest run by default. A bundle brings some along, where its data set is not at hand.
        data: another data set by name, or a ``.npz`` of a bundle.
        data_dir: where the data set's files lie.
    """
    from emqdeploy.runtimes.source import describe, find_network
    from emqdeploy.runtimes.test_images import find_test_set

    found = find_network(path)
    return find_test_set(describe(found)[0], data, _path(data_dir), found).split


def _path(path: Where | None) -> Path | None:
    return None if path is None else Path(path)


def _listed(bits: Children | int | None) -> Children | None:
    return (bits,) if isinstance(bits, int) else bits


def _text(bits: Children | int) -> str:
    listed = [bits] if isinstance(bits, (int, str)) else bits
    return ",".join(one.name if isinstance(one, Child) else str(one) for one in listed)


def _check_options(given: dict[str, Any], classes: Sequence[type], also: Sequence[str] = ()) -> None:
    """Raises for an option that the command does not have."""
    known = [*also, *(one.argument for one in options_of(*classes))]
    strange = next((name for name in given if name not in known), None)
    if strange is not None:
        raise UsageError(f"unknown option {strange!r}{nearest(strange, known)}; see: emqdeploy COMMAND --help-all")
