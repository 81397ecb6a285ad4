"""A float ONNX file as a network of torch: its steps as plain data, and its weights.

Nothing in the file is run: its operators are looked up by name, and what is not a usual operator of a network of images
is refused. Whether the network is the function of the file is measured with onnxruntime afterwards, by who has images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emqdeploy.errors import EmqError, require
from emqdeploy.models.described import IMAGES, Description, plain
from emqdeploy.models.onnx import functions, moving  # noqa: F401  (file their operators)
from emqdeploy.models.onnx.building import COUNTS, Building, Value
from emqdeploy.models.onnx.file import SUFFIX, Node, OnnxFile, read_file
from emqdeploy.models.onnx.folding import FOLDED, fold
from emqdeploy.models.onnx.fusing import fuse
from emqdeploy.models.onnx.layers import OPERATORS

__all__ = ["SUFFIX", "OnnxNetwork", "read_network", "side_of"]


@dataclass(frozen=True)
class OnnxNetwork:
    """What a file gives.

    Attributes:
        description: of the network, as plain values.
        state: its weights by name.
        classes: how many logits it gives.
        channels: of its images, 1 or 3.
        sides: height and width of its images.
        notes: what the user should know, a sentence each.
        answer: what onnxruntime computes of images ``(N, C, H, W)`` from the file.
    """

    description: dict[str, Any]
    state: dict[str, Tensor]
    classes: int
    channels: int
    sides: tuple[int, int]
    notes: tuple[str, ...]
    answer: Callable[[NDArray[np.float32]], NDArray[np.float32]]


def read_network(path: Path, image_size: int | None = None) -> OnnxNetwork:
    """Reads a float network from an ONNX file.

    Args:
        path: the file.
        image_size: height and width of the images, where the file leaves them open.

    Raises:
        EmqError: it is no network of images that can be quantized; the sentence names what in it is not.
    """
    file = read_file(path)
    channels, sides, last = _image(file, image_size)
    samples = [torch.empty((count, channels, *sides), device="meta") for count in COUNTS]
    images = Value(IMAGES, (samples[0], samples[1]))
    net = Building(file, images, {name: (array, array) for name, array in file.constants.items()})
    for node in file.nodes:
        for name in node.inputs:
            net.readers[name] = net.readers.get(name, 0) + 1
    first = Node("Transpose", "", [IMAGES], [], {"perm": [0, 2, 3, 1]})
    net.values[IMAGES] = images
    net.values[file.input] = net.call(first, "permute", images, axes=[0, 2, 3, 1]) if last else images
    for node in file.nodes:
        _take(net, node)
    answer = _logits(net)
    description = net.description(answer)
    sizes = {value.name: value.sizes for value in (images, *net.given)}
    description = Description(fuse(description.steps, net.state, sizes), description.tensors)
    owners = {step.name for step in description.steps}
    used = {name for step in description.steps for name in step.inputs}
    tensors = {name: shape for name, shape in description.tensors.items() if name in used}
    state = {name: one for name, one in net.state.items() if name in tensors or name.rpartition(".")[0] in owners}
    made = plain(Description(description.steps, tensors))
    return OnnxNetwork(made, state, answer.sizes[1], channels, sides, tuple(net.notes), _session(file, last))


def side_of(path: Path) -> int | None:
    """Height and width of the images that a file takes; None where it leaves them open, or they differ."""
    _, second, third, fourth = read_file(path).shape
    height, width = (second, third) if second not in (1, 3) else (third, fourth)
    return height if height == width else None


def _image(file: OnnxFile, image_size: int | None) -> tuple[int, tuple[int, int], bool]:
    """Channels, height and width, and whether the channels come last."""
    _, second, third, fourth = file.shape
    last = second not in (1, 3)
    channels, given = (fourth, (second, third)) if last else (second, (third, fourth))
    if image_size is None and None in given:
        raise file.refuse("leaves the size of its images open", "say it with --image-size")
    height, width = (image_size if side is None else side for side in given)
    assert channels is not None
    assert height is not None
    assert width is not None
    if image_size is not None and (height, width) != (image_size, image_size):
        raise file.refuse(f"takes images of {height} x {width}, not of {image_size}", "leave --image-size out")
    return channels, (height, width), last


def _take(net: Building, node: Node) -> None:
    """Reads one operator: works it out, or makes steps of it."""
    if node.operator == "Constant":
        _note_constant(net, node)
    elif node.operator in ("Shape", "Size") and node.inputs[0] in net.values:
        value = net.values[node.inputs[0]]
        shapes = [np.array(sample.shape, np.int64) for sample in value.samples]
        first, final = int(node.attributes.get("start", 0)), node.attributes.get("end")
        sized = [shape[first:final] if node.operator == "Shape" else np.prod(shape) for shape in shapes]
        net.known[node.outputs[0]] = (np.asarray(sized[0]), np.asarray(sized[1]))
    elif any(name in net.values for name in node.inputs):
        if node.operator not in OPERATORS:
            raise net.refuse(node, "is none that networks of images usually have")
        found = OPERATORS[node.operator](net, node)
        for name, value in zip(node.outputs, found if isinstance(found, list) else [found], strict=False):
            net.values[name] = value
    else:
        _fold(net, node)


def _note_constant(net: Building, node: Node) -> None:
    given = next(iter(node.attributes.values()), None)
    if not isinstance(given, (int, float, list, np.ndarray)):
        raise net.refuse(node, "holds no numbers")
    whole = "value_int" in node.attributes or "value_ints" in node.attributes
    array = given if isinstance(given, np.ndarray) else np.array(given, np.int64 if whole else np.float32)
    net.known[node.outputs[0]] = (array, array)


def _fold(net: Building, node: Node) -> None:
    """Works out what no image reaches, for both numbers of images."""
    missing = [name for name in node.inputs if name and name not in net.known]
    if missing or not any(node.inputs) or node.operator not in FOLDED:
        reads = f"reads {missing[0]!r}, which nothing gives" if missing else "does not depend on the images"
        raise net.refuse(node, reads)
    pairs = [net.known[name] if name else (None, None) for name in node.inputs]
    try:
        two = fold(node, [pair[0] for pair in pairs], net.file.opset)
        three = two if all(a is b for a, b in pairs) else fold(node, [pair[1] for pair in pairs], net.file.opset)
    except ValueError as error:
        raise net.refuse(node, f"cannot be worked out ({error})") from error
    for name, a, b in zip(node.outputs, two, three, strict=False):
        net.known[name] = (a, a if a is b or (a.shape == b.shape and np.array_equal(a, b)) else b)


def _logits(net: Building) -> Value:
    """What the network answers, without a softmax at the end: files answer with logits."""
    answer = net.values.get(net.file.output)
    if answer is None:
        raise net.file.refuse(f"gives {net.file.output!r} whatever the images are", "give a network of images")
    place = net.step_of(answer)
    if place is not None and net.steps[place].kind == "softmax" and len(answer.sizes) == 2:
        answer = net.source_of(net.steps[place])
        net.notes.append("the softmax at its end is left out: what is written answers with logits")
    if len(answer.sizes) == 4 and answer.sizes[2:] == (1, 1):
        answer = net.call(Node("Flatten", "", [], [], {}), "reshape", answer, shape=[-1, answer.sizes[1]])
    if len(answer.sizes) != 2 or answer.sizes[0] != -1 or answer.sizes[1] < 2 or answer is net.images:
        shape = " x ".join("N" if side == -1 else str(side) for side in answer.sizes)
        raise net.file.refuse(f"answers with {shape}, not with logits N x classes", "give a network that classifies")
    return answer


def _session(file: OnnxFile, last: bool) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What runs the very file in onnxruntime, image by image where it was exported for one."""
    softened = next((node for node in file.nodes if file.output in node.outputs), None)

    def answer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        ort: Any = require("onnxruntime", "train")
        if softened is not None and softened.operator == "Softmax":
            del file.model.graph.output[:]
            file.model.graph.output.add().name = softened.inputs[0]
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = ort.InferenceSession(file.model.SerializeToString(), options, ["CPUExecutionProvider"])
            given = np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if last else images
            count = file.shape[0] or len(given)
            whole = [given[start : start + count] for start in range(0, len(given) - count + 1, count)]
            parts = [session.run(None, {file.input: part})[0] for part in whole]
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise EmqError(f"{file.path} does not run in onnxruntime ({reason[:200]}); export it again") from error
        answers: NDArray[np.float32] = np.concatenate(parts)
        return answers.reshape(len(answers), -1)

    return answer
