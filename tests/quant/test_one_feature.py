"""Small networks with one feature each: right in float to the last bits, exact in integers, or refused by name."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.one_feature import NETWORKS, images
from benchmarks.zoo import ONE_FEATURE
from emqdeploy.errors import EmqError
from emqdeploy.format.child import parse_children
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.models import create_model, trust
from emqdeploy.models.answers import logits_of
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.layers import TrainingOnly
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.proof import prove
from emqdeploy.quant.skeleton import export_skeleton
from emqdeploy.training.posttraining.stages import EQUALIZATIONS

SHAPE = (3, 16, 16)
CHILDREN = parse_children("2,8")

REFUSED = {
    "norm_without_statistics": "normalization '1.1' keeps no statistics, .*track_running_stats=True",
    "convolution_3d": "layer '1.0.conv' is a Conv3d, .*--keep-float 1.0.conv",
    "convolution_transposed": "layer '1.0' is a ConvTranspose2d, .*--keep-float 1.0",
    "dropout_in_evaluation": "'dropout' drops values in evaluation too, .*training=self.training",
    "several_answers": "answers with 2 tensors in evaluation, .*name them 'logits'",
    "several_inputs": r"TwoInputs takes 2 inputs \(x, mask\)",
    "part_in_place": "'mul_' changes a part of a tensor in place",
}
"""What cannot be right, and how it is said."""

LAYERS = {
    "convolution_1d": "0.0 1.0.conv 2.3",
    "convolution_of_logits": "0 3",
    "einops_layers": "1 4",
    "einsum_of_a_parameter": "0.0 1.0.body 2.3",
    "functional_convolution": "0.0 1.0 2.3",
    "functional_linear": "0.0.0 0.2.3 2 4",
    "layer_on_a_constant": "0.0 1.0.conv 2.3",
    "matrix_parameter": "0.0.0 0.2.3 2 4",
    "layer_called_twice": "0.0 1.0.conv 1.0.conv_again 2.3",
    "norm_called_twice": "0.0 1.0.a 1.0.b 2.3",
    "norm_of_rows_alone": "0.0.0 0.2.3 2.0_as_conv 2.1 4",
    "standardized_weights": "0.0 1.0.0 2.3",
}
"""Quantized layers, where it is not plain which there are."""


def build(name: str) -> nn.Module:
    """A network with statistics of its own."""
    torch.manual_seed(0)
    return with_statistics(NETWORKS[name](5))


def with_statistics(model: nn.Module) -> nn.Module:
    """Gives normalizations statistics as training would."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    return model


def insert(model: nn.Module, shape: tuple[int, int, int] = SHAPE) -> MultiBitNetwork:
    """The multi-bit network of a model."""
    return insert_quantizers(model, InsertionConfig(), CHILDREN, (), 2.0, shape)


def batch(shape: tuple[int, int, int] = SHAPE, count: int = 3) -> Tensor:
    """Images in the range of the input."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count)).clamp(-2, 2)


def same(model: nn.Module, network: nn.Module, x: Tensor) -> None:
    """Asserts that both answer alike in evaluation."""
    with torch.no_grad():
        expected, found = logits_of(model.eval()(x), "model"), network.eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in REFUSED])
def test_the_network_is_the_model_as_it_is_deployed(name: str) -> None:
    """In evaluation, whatever mode the model is in; the model itself stays as it is; training runs."""
    model = build(name).train()
    before = copy.deepcopy(model.state_dict())
    network = insert(model)
    assert all(module.training for module in model.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert network.training
    same(model, network, batch())
    with network.at(2):
        network.train()(batch()).sum().backward()
    if name in LAYERS:
        assert " ".join(network.layers) == LAYERS[name]


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_right_is_refused_by_name(name: str) -> None:
    """Before any work, in one sentence with the way out."""
    with pytest.raises(EmqError, match=REFUSED[name]) as error:
        insert(build(name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["logits_by_name", "logits_in_a_tuple"])
def test_logits_are_found_in_a_model_by_name_too(name: str) -> None:
    """`create_model` has it answer with logits alone; so does tracing, with what stands for a tensor there."""
    model = f"{ONE_FEATURE}:{name}"
    trust(model)
    assert list(insert(create_model(model, 5, *SHAPE[:2])).layers) == ["net.0.0", "net.2.3"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in REFUSED])
def test_what_is_exported_is_what_was_frozen(name: str) -> None:
    """The graph in exact integers gives the answers of the torch reference; float operators round alike."""
    network = insert(build(name))
    network.initialise_clips(batch(count=8))
    frozen = freeze(network.eval(), CHILDREN)
    skeleton = export_skeleton(network, frozen, SHAPE)
    for child in CHILDREN:
        with torch.no_grad():
            expected = deployed_reference(network, frozen, child)(batch()).numpy()
        found, _ = IntegerReference(skeleton, frozen.initializers(child)).run(batch().numpy())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


KEPT = {
    "padding_same": ("1.0", "2.3"),
    "convolution_3d": ("1.0.conv",),
    "convolution_transposed": ("1.0",),
    "layer_called_twice": ("1.0.conv",),
}
"""What `--keep-float` is told of networks that are taken, and of those for which the sentence of refusal advises it."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in REFUSED)) for name in KEPT])
def test_what_is_kept_in_float_is_deployed_so(name: str) -> None:
    """It reads codes, or answers the logits, and is no integer kernel of any runtime."""
    options = InsertionConfig(keep_float=KEPT[name])
    network = insert_quantizers(build(name), options, CHILDREN[-1:], (), 2.0, SHAPE)
    network.initialise_clips(batch(count=8))
    frozen = freeze(network.eval(), CHILDREN[-1:])
    assert not [layer for layer in network.layers if layer.startswith(KEPT[name])]
    with torch.no_grad():
        expected = deployed_reference(network, frozen, CHILDREN[-1])(batch()).numpy()
    reference = IntegerReference(export_skeleton(network, frozen, SHAPE), frozen.initializers(CHILDREN[-1]))
    np.testing.assert_allclose(reference.run(batch().numpy())[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert reference.float_logits == ("2.3" in KEPT[name])


STACKED = (
    *(
        "padding_same",
        "padding_same_uneven",
        "padding_reflect",
        "standardized_weights",
        "weight_norm_hook",
        "norm_frozen",
    ),
    *("norm_called_twice", "norm_before_convolution", "functional_convolution", "convolution_1d", "relu_in_place"),
    *("pool_adaptive_mean", "pool_mean_ceil", "stochastic_depth", "drop_path", "layer_on_a_constant", "names_of_ours"),
    *("split_and_shuffle", "squeeze_and_excite", "norm_of_groups", "prelu_shared", "attention_of_torch"),
    "norm_of_flattened_tokens",
)


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from(STACKED), min_size=1, max_size=4),
    sizes=st.tuples(st.sampled_from((12, 16, 24)), st.sampled_from((16, 20))),
    equalization=st.sampled_from(("none", "peak")),
)
def test_any_stack_of_features_keeps_its_function(names: list[str], sizes: tuple[int, int], equalization: str) -> None:
    """Rewrites, insertion and equalization leave the float network what it was, also for images that are not square."""
    torch.manual_seed(1)
    model = with_statistics(images(*(NETWORKS[name](5).get_submodule("1") for name in names))(5))
    x = batch((3, *sizes))
    try:
        model.eval()(x)
    except (RuntimeError, ValueError):
        assume(False)  # too small for this stack
    network = insert(model, (3, *sizes))
    EQUALIZATIONS[equalization](network)
    same(model, network, x)


def test_without_sizes_the_rest_works() -> None:
    """The shape of images is needed by what depends on it alone."""
    for name in ("padding_same", "weight_norm_hook", "stochastic_depth", "functional_convolution"):
        model = build(name)
        same(model, insert_quantizers(model, InsertionConfig(), CHILDREN, (), 2.0), batch())


def test_other_numbers_of_channels() -> None:
    """One, four and six channels."""
    for channels in (1, 4, 6):
        model = nn.Sequential(nn.Conv2d(channels, 8, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
        same(model, insert(model, (channels, 8, 8)), batch((channels, 8, 8)))


@pytest.mark.parametrize("name", ["stochastic_depth", "drop_path", "functional_dropout"])
def test_what_only_training_does_is_kept_for_it(name: str) -> None:
    """And is gone from what is deployed."""
    network = insert(build(name))
    kept = [module for module in network.modules() if isinstance(module, TrainingOnly)]
    assert len(kept) == 1
    with torch.no_grad():
        assert not torch.equal(network.train()(batch(count=8)), network.train()(batch(count=8)))
    deployed = deployed_reference(network, freeze(network.eval(), CHILDREN), CHILDREN[0])
    assert not any(isinstance(module, TrainingOnly) for module in deployed.modules())


def test_weights_go_back_into_the_model_that_they_came_from() -> None:
    """Names of parameters are those of the model, also where they look like ours."""
    for name in ("names_of_ours", "functional_convolution", "norm_without_affine", "stochastic_depth"):
        model = build(name)
        assert set(insert(model).float_state()) == set(model.state_dict())


def test_notes_say_what_training_would_change() -> None:
    """Weights that were computed from others, normalizations with several users."""
    assert "computes its weight from other parameters" in insert(build("weight_norm_hook")).notes[0]
    assert "normalization '1.0.norm' is called 2 times" in insert(build("norm_called_twice")).notes[0]
    assert (
        "'1.0.conv' is called 2 times: each call has a copy ('1.0.conv_again')"
        in insert(build("layer_called_twice")).notes[0]
    )
    assert "'1.0.0.weight' and '1.0.2.weight' are one tensor" in insert(build("weights_tied")).notes[0]
    assert "'1.0.mlp.2'" in insert(build("layer_on_a_constant")).notes[0]
    assert insert(build("padding_same")).notes == ()


class OneImage(nn.Module):
    """Branches on the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, 8, 8) to (N, 5)."""
        logits = self.fc(x.flatten(1))
        return logits if len(x) > 1 else -logits


class Fixed(OneImage):
    """Knows the size of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (3, 3, 8, 8) to (3, 5)."""
        return self.fc(x.reshape(3, 192))


def test_resizing_by_a_factor_can_be_stored() -> None:
    """The gate knows the shape of what a file of it would compute, or refuses it before any work."""
    prove(insert(build("upsampling")), SHAPE)
    prove(insert(build("einops_functions")), SHAPE)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OneImage(), "cannot trace OneImage: .*not supported|branches"),
        (Fixed(), "does not take batches of every size"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.RReLU(), nn.Linear(5, 5)),
            r"operator 'rrelu\w*' \(module '2' of type RReLU\)",
        ),
    ],
)
def test_a_network_is_proven_before_any_work(model: nn.Module, message: str) -> None:
    """What only the exporter, or another batch size, would find."""
    with pytest.raises(EmqError, match=message):
        prove(insert(model, (3, 8, 8)), (3, 8, 8))
