"""Widths per layer after training: children of a file's codes, statistics, sensitivities, the order of steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.training.mixing.descent import DESCENTS, Costs, Step, mixes
from emqdeploy.training.mixing.moments import Matching, Moments, gain_and_shift, moved
from emqdeploy.training.mixing.sensitivity import SENSITIVITIES, Trial, measure, unrounded
from emqdeploy.training.mixing.stored import lender, named_child, offered, widest, with_child

from ..conftest import ALL_BITS, Deployed

EIGHT = Child.of(8)


@pytest.fixture(scope="module")
def batches(small: Deployed) -> list[torch.Tensor]:
    """Its images, in two batches."""
    return list(torch.from_numpy(small.images).split(8))


# --- children of what a file holds --------------------------------------------------------------------------------


def test_a_file_offers_the_widths_of_its_children(small: Deployed) -> None:
    """Layers that stay at 8 bits are not to be mixed; the widest child is the uniform one of most bits."""
    network = small.checkpoint.network
    assert widest(network) == EIGHT
    assert offered(network, EIGHT) == dict.fromkeys(small.network.switchable, ALL_BITS)
    assert lender(network, small.network.switchable[0], 4, EIGHT) == Child.of(4)
    assert offered(network, Child.of(4)) == dict.fromkeys(small.network.switchable, (1, 2, 3, 4))


def test_a_mixed_child_is_sorted_by_its_commonest_width() -> None:
    """It names the others."""
    child = named_child("mix", {"a": 4, "b": 2, "c": 4, "d": 8}, Child.of(8, 4))
    assert child == Child("mix", {"*": 4, "b": 2, "d": 8}, 4)
    assert named_child("mix", {"a": 4, "b": 4}, EIGHT).uniform


def test_a_new_child_has_the_integers_of_its_lenders(small: Deployed) -> None:
    """Codes are shared, and other children stay as they are; a child by its name makes way."""
    network = small.checkpoint.network
    layer = small.network.switchable[1]
    child = named_child("mix", dict.fromkeys(small.network.switchable, 4) | {layer: 2}, EIGHT)
    made = with_child(with_child(network, replace_widths(child, 8), EIGHT), child, EIGHT)
    assert [one.name for one in made.children] == ["1", "2", "3", "4", "mix", "5", "6", "7", "8"]
    arrays, kept = made.initializers(child), made.initializers(EIGHT)
    for name in network.layers:
        source = EIGHT if network.layers[name].pinned else Child.of(2) if name == layer else Child.of(4)
        np.testing.assert_array_equal(arrays[f"{name}.weight"], network.initializers(source)[f"{name}.weight"])
    for name, array in network.initializers(EIGHT).items():
        np.testing.assert_array_equal(kept[name], array)


def replace_widths(child: Child, bits: int) -> Child:
    """The child's name at one width."""
    return Child(child.name, bits, child.activations)


# --- statistics ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_moments_become_the_wanted_ones(seed: int, is_convolution: bool, scaled: bool) -> None:
    """Means always, deviations where they are asked for; a channel without any is only shifted."""
    generator = torch.Generator().manual_seed(seed)
    shape = (6, 3, 4, 4) if is_convolution else (6, 4, 3)
    found, other = (torch.randn(shape, generator=generator) * spread + 1 for spread in (3.0, 0.5))
    channel = (slice(None), 0) if is_convolution else (..., 0)
    found[channel] = 2.0
    wanted = Moments.of(other, is_convolution)
    gain, shift = gain_and_shift(Moments.of(found, is_convolution), wanted, scaled)
    got = Moments.of(moved(found, gain, shift, is_convolution), is_convolution)
    torch.testing.assert_close(got.mean, wanted.mean, atol=1e-5, rtol=1e-5)
    assert gain[0] == 1
    if scaled:
        torch.testing.assert_close(got.deviation[1:], wanted.deviation[1:], atol=1e-4, rtol=1e-4)
    else:
        assert bool((gain == 1).all())


def test_the_widest_child_is_its_own_match(small: Deployed, batches: list[torch.Tensor]) -> None:
    """Estimated against itself it stays as it is."""
    network = small.checkpoint.network
    matched = Matching(small.network, network, EIGHT, batches)(network, EIGHT)
    for name, layer in network.layers.items():
        np.testing.assert_allclose(matched.layers[name].grids[EIGHT].scale, layer.grids[EIGHT].scale, rtol=1e-4)
        np.testing.assert_allclose(matched.layers[name].biases[EIGHT], layer.biases[EIGHT], rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_a_matched_child_answers_nearer_to_the_widest(small: Deployed) -> None:
    """The last layer gives what it gives there on average, channel by channel; what was borrowed does not."""
    network, layers = small.checkpoint.network, small.network.switchable
    child = named_child("mix", dict.fromkeys(layers, 2) | {layers[0]: 4}, EIGHT)
    borrowed, images = with_child(network, child, EIGHT), torch.from_numpy(small.images)
    matched = Matching(small.network, borrowed, EIGHT, [images])(borrowed, child)
    wanted = deployed_reference(small.network, network, EIGHT)(images)
    errors = [deployed_reference(small.network, frozen, child)(images) - wanted for frozen in (borrowed, matched)]
    before, after = (error.mean(0).abs().max() for error in errors)
    assert after < 0.1 * before
    assert errors[1].square().mean() < errors[0].square().mean()


# --- sensitivities ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trial(small: Deployed) -> Trial:
    """The widest child, one of whose layers can change."""
    module = unrounded(deployed_reference(small.network, small.checkpoint.network, EIGHT))
    convolutions = {name for name, layer in small.network.layers.items() if isinstance(layer, nn.Conv2d)}
    return Trial(module, set(small.network.norm_of), convolutions)


@torch.inference_mode()
def test_a_trial_computes_what_the_whole_network_would(small: Deployed, trial: Trial) -> None:
    """From the changed layer on, it gives what running everything gives; and the network is left as it was."""
    images, layer = torch.from_numpy(small.images), small.network.switchable[2]
    before = trial.start(images)
    own = trial.module.get_submodule(layer)
    torch.testing.assert_close(trial.logits(layer, own.weight), before, atol=1e-4, rtol=1e-4)
    # A layer that gives twice as much, or the same moved, is moved back: the moments are all that is matched.
    torch.testing.assert_close(trial.logits(layer, 2 * own.weight), before, atol=1e-3, rtol=1e-3)
    changed = trial.logits(layer, own.weight.flip(1))
    assert float((changed - before).abs().max()) > 1e-2
    torch.testing.assert_close(trial.module(images), before)


def test_fewer_bits_lose_more(small: Deployed, trial: Trial, batches: list[torch.Tensor]) -> None:
    """Losses are per image, in the unit that each sensitivity shows; answers without a number are an error."""
    name, network = small.network.switchable[0], small.checkpoint.network
    layer = network.layers[name]

    def weights(child: Child) -> torch.Tensor:
        return torch.from_numpy(layer.integers(child) * layer.grids[child].scale.reshape(-1, 1, 1, 1))

    tried = {name: {bits: weights(Child.of(bits)) for bits in (2, 4, 8)}}
    noise = SENSITIVITIES["sqnr"]()
    losses, signal = measure(trial, tried, batches, None, noise)
    assert losses[name][2] > losses[name][4] > losses[name][8] == pytest.approx(0, abs=1e-6)
    assert signal > 0
    assert noise.shown(1.0, 100.0) == "20.0"
    labels = [trial.module(images).argmax(1) for images in batches]
    accuracy, _ = measure(trial, tried, batches, labels, SENSITIVITIES["accuracy"]())
    assert 0 <= accuracy[name][2] <= 1
    assert accuracy[name][8] == 0
    with pytest.raises(EmqError, match=f"layer '{name}' at 2 bits makes the answers infinite"):
        measure(trial, {name: {2: weights(EIGHT) * float("nan")}}, batches, None, noise)


# --- the order of steps -------------------------------------------------------------------------------------------

LOSSES = {"a": {2: 9.0, 4: 1.0, 8: 0.0}, "b": {2: 2.0, 4: 1.0, 8: 0.0}}
COSTS = Costs(10, {"a": {2: 2, 4: 4, 8: 8}, "b": {2: 20, 4: 40, 8: 80}})
START = {"a": 8, "b": 8}


def test_the_paper_takes_pairs_in_the_order_of_their_loss() -> None:
    """Of two that lose the same, the one that saves more goes first."""
    assert DESCENTS["sorted"](LOSSES, COSTS, START) == [Step("b", 4), Step("a", 4), Step("b", 2), Step("a", 2)]
    # A width whose turn comes when its layer is narrower already is passed over.
    turned = LOSSES | {"b": {2: 0.5, 4: 1.0, 8: 0.0}}
    assert DESCENTS["sorted"](turned, COSTS, START)[0] == Step("b", 2)
    assert Step("b", 4) not in DESCENTS["sorted"](turned, COSTS, START)


def test_gain_weighs_a_loss_by_what_it_saves() -> None:
    """The layer that costs ten times as much goes down to the end before the other begins."""
    assert DESCENTS["gain"](LOSSES, COSTS, START) == [Step("b", 4), Step("b", 2), Step("a", 4), Step("a", 2)]
    assert mixes(DESCENTS["gain"](LOSSES, COSTS, START), START)[2] == {"a": 8, "b": 2}


ladders = st.lists(st.floats(0.01, 10), min_size=3, max_size=3)


@given(st.lists(st.tuples(ladders, st.floats(0.1, 5)), min_size=1, max_size=3))
def test_no_mix_beats_those_of_gain_at_their_cost(layers: list[tuple[list[float], float]]) -> None:
    """As far as losses add up: whatever costs no more loses no less. Both orders narrow, down to the end."""
    losses, costs = {}, {}
    for index, (steps, weight) in enumerate(layers):
        losses[str(index)] = {bits: sum(steps[: 3 - place]) for place, bits in enumerate((2, 4, 6))} | {8: 0.0}
        costs[str(index)] = {bits: weight * bits for bits in (2, 4, 6, 8)}
    table, start = Costs(0, costs), dict.fromkeys(losses, 8)

    def lost(mix: dict[str, int]) -> float:
        return sum(losses[name][bits] for name, bits in mix.items())

    every = [dict(zip(losses, widths, strict=True)) for widths in product((2, 4, 6, 8), repeat=len(losses))]
    for descent in DESCENTS.values():
        found = mixes(descent(losses, table, start), start)
        assert found[-1] == dict.fromkeys(losses, 2)
        assert all(table.of(after) < table.of(before) for before, after in pairwise(found))
    for mix in mixes(DESCENTS["gain"](losses, table, start), start):
        assert lost(mix) <= min(lost(other) for other in every if table.of(other) <= table.of(mix) + 1e-9) + 1e-6


def test_children_of_full_precision_only_offer_nothing_to_mix(small: Deployed) -> None:
    """A file of one child has one width."""
    network = small.checkpoint.network
    one = replace(network, children=(EIGHT,))
    assert set(offered(one, widest(one)).values()) == {(8,)}
