"""The Triton layout: configurations that the official schema reads back, one model per bit-width."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from emqdeploy.exporters.triton import config_pbtxt


def model_config() -> Any:
    """Triton's own schema, without the client around it (which needs gRPC)."""
    name = "emqdeploy_test_model_config_pb2"
    if name not in sys.modules:
        package = importlib.util.find_spec("tritonclient")
        if package is None or not package.submodule_search_locations:
            pytest.skip("tritonclient is not installed")
        path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def test_the_official_schema_reads_it_back() -> None:
    """Every field arrives, whatever stands in a name."""
    schema = model_config()
    text = config_pbtxt(
        'net"w4', "onnxruntime_onnx", 8, [("images", "float32", [3, 8, 8])], [("logits", "float32", [10])], "KIND_CPU"
    )
    config = text_format.Parse(text, schema.ModelConfig())
    assert (config.name, config.platform, config.max_batch_size) == ('net"w4', "onnxruntime_onnx", 8)
    (image,), (logits,) = config.input, config.output
    assert (image.name, list(image.dims), image.data_type) == ("images", [3, 8, 8], schema.TYPE_FP32)
    assert (logits.name, list(logits.dims)) == ("logits", [10])
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU
    assert config.HasField("dynamic_batching")


def test_a_selector_keeps_its_batch_dimension() -> None:
    """The bit-width is one number for a whole batch, so Triton must not batch it."""
    schema = model_config()
    inputs = [("images", "float32", [-1, 3, 8, 8]), ("bits", "int64", [1])]
    config = text_format.Parse(
        config_pbtxt("net", "onnxruntime_onnx", 0, inputs, [("logits", "float32", [-1, 10])], "KIND_CPU"),
        schema.ModelConfig(),
    )
    assert config.max_batch_size == 0
    assert [list(entry.dims) for entry in config.input] == [[-1, 3, 8, 8], [1]]
    assert not config.HasField("dynamic_batching")
