"""What becomes of a float network before quantizers are inserted: small rewrites, each in the file of its kind."""

from __future__ import annotations

from emqdeploy.quant.rewrites.base import REWRITES, Stage, Traced
from emqdeploy.registry import load_package


def rewrite_all(traced: Traced) -> None:
    """Runs every rewrite on a traced network, stage by stage."""
    load_package(__name__)
    for stage in Stage:
        for when, change in REWRITES:
            if when is stage:
                change(traced)
        if stage >= Stage.CONSTANTS:  # until then, what looks unused may change a constant in place
            _drop_unused(traced)
    traced.graph.lint()
    traced.module.recompile()


def _drop_unused(traced: Traced) -> None:
    """Takes out nodes, modules and tensors that nothing needs any more."""
    traced.graph.eliminate_dead_code()
    traced.module.delete_all_unused_submodules()
    called = {str(node.target) for node in traced.nodes if node.op == "call_module"}
    read = {str(node.target) for node in traced.nodes if node.op == "get_attr"}
    for name, module in list(traced.module.named_modules()):
        if any(name == one or name.startswith(f"{one}.") for one in called):
            continue
        for tensors in (module._parameters, module._buffers):
            for leaf in [leaf for leaf in tensors if f"{name}.{leaf}".lstrip(".") not in read]:
                del tensors[leaf]
