"""Forward passes on a GPU: a replayed graph is the pass that it was captured from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from emqdeploy.format.child import FLOAT, Child
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.training.forward import forward_of
from emqdeploy.training.settings import CommonOptions

TWO, EIGHT = Child("2", 2, 8), Child("8", 8, 8)
BATCH = 16


def passes(graphs: bool, device: str, amp: str = "none") -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Logits and gradients of updates by one child or two, the last batch smaller than the others; then statistics."""
    torch.manual_seed(0)
    network = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (TWO, EIGHT), ()).build()
    network.initialise_clips(torch.randn(32, 1, 8, 8))
    network.to(device).train()
    common = CommonOptions(batch_size=BATCH, cuda_graphs=graphs, amp=amp)
    forward = forward_of(common, network, (FLOAT, TWO, EIGHT), torch.device(device), alone=True)
    said, learned = [], []
    updates = ((TWO,), (EIGHT,), (FLOAT,), (TWO,), (EIGHT, TWO), (TWO, EIGHT), (TWO,))
    for number, children in enumerate(updates):
        count = BATCH if number + 1 < len(updates) else BATCH // 2
        images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(number)).to(device)
        network.zero_grad(set_to_none=True)
        for child in children:
            logits = forward(child, images)
            F.cross_entropy(logits.float(), torch.arange(count, device=device) % 10).backward()
            said.append(logits.detach().float().cpu())
        learned.append({name: p.grad.cpu().clone() for name, p in network.named_parameters() if p.grad is not None})
    return said, [*learned, {name: buffer.cpu() for name, buffer in network.named_buffers()}]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_graphs_compute_what_they_were_captured_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, gradients and running statistics are those of operator by operator."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain, graphed = passes(False, "cuda"), passes(True, "cuda")
    for one, other in zip(plain[0], graphed[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    for number, (expected, found) in enumerate(zip(plain[1], graphed[1], strict=True)):
        # What a child does not use has no gradient, or one of zeros.
        for name in {*expected, *found}:
            zeros = torch.zeros_like(expected.get(name, found.get(name)))
            one, other = expected.get(name, zeros), found.get(name, zeros)
            scale = float(one.float().abs().max())
            assert float((one.float() - other.float()).abs().max()) <= 1e-2 * scale + 1e-4, (number, name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_a_gpu_computes_what_the_cpu_does(amp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels for fake quantization are others; the gradients point where those of the CPU do."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected, found = passes(False, "cpu", amp), passes(True, "cuda", amp)
    for one, other in zip(expected[0], found[0], strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.98
    names = list(expected[1][0])
    one, other = (torch.cat([found[0][name].flatten() for name in names]) for _, found in (expected, found))
    assert F.cosine_similarity(one, other, dim=0) > (0.9 if amp == "bf16" else 0.99)


def test_without_a_gpu_nothing_is_captured() -> None:
    """The option is on by default and means nothing on a CPU."""
    plain, graphed = passes(False, "cpu"), passes(True, "cpu")
    assert all(torch.equal(one, other) for one, other in zip(plain[0], graphed[0], strict=True))
