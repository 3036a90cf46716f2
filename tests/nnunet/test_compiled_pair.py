# SPDX-License-Identifier: Apache-2.0
"""torch.compile and DDP around the pair, as nnU-Net puts them, while its output is switched."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_dhc.nnunet.network.cotrained_pair import CoTrainedPair, allow_graphs_of_all_outputs, unwrapped


def make_pair() -> CoTrainedPair:
    torch.manual_seed(0)
    networks = [
        PlainConvUNet(
            1, 3, (4, 4, 4), nn.Conv3d, 3, ((1, 1, 1), (2, 2, 2), (2, 2, 2)), 1, 3, 1, True, nn.InstanceNorm3d,
            {"affine": True}, None, None, nn.LeakyReLU, {"inplace": True}, deep_supervision=True,
        )
        for _ in range(2)
    ]
    return CoTrainedPair(*networks)


@pytest.fixture
def graphs():
    """Graphs that were compiled, and a backend that runs them as they are."""
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph

    torch._dynamo.reset()
    with torch._dynamo.config.patch(automatic_dynamic_shapes=True):
        allow_graphs_of_all_outputs()
        yield compiled, backend
    torch._dynamo.reset()


def set_deep_supervision(pair: CoTrainedPair, enabled: bool) -> None:
    for network in pair.sub_networks:
        network.decoder.deep_supervision = enabled


def flat(output) -> list[torch.Tensor]:
    return [tensor for item in output for tensor in flat(item)] if isinstance(output, (list, tuple)) else [output]


def one_epoch(network: nn.Module) -> list[torch.Tensor]:
    """What an epoch and the final validation ask of the pair; outputs and gradients in order."""
    pair, seen = unwrapped(network), []
    images = torch.randn(4, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    for batch in (images, images[:2], images):  # steps without unlabeled patches have half the batch
        network.train()
        with pair.giving("both"):
            output = flat(network(batch))
        pair.zero_grad()
        sum((tensor**2).mean() for tensor in output).backward()
        seen += [*output, *(parameter.grad for parameter in pair.parameters())]
    network.eval()
    with torch.no_grad(), pair.giving("both"):
        seen += flat(network(images[:2]))
    set_deep_supervision(pair, False)
    with torch.inference_mode():
        for image in images:
            seen += flat(network(image[None]))
        for output in ("a", "b", "mean"):
            with pair.giving(output):
                seen += flat(network(images[:1]))
    set_deep_supervision(pair, True)
    return [tensor.detach().clone() for tensor in seen]


def test_compiled_pair_follows_the_switch(graphs):
    compiled, backend = graphs
    expected = one_epoch(make_pair())
    network = torch.compile(make_pair(), backend=backend)
    for actual, wanted in zip(one_epoch(network), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)
    after_one_epoch = len(compiled)
    assert after_one_epoch <= torch._dynamo.config.recompile_limit
    assert {size for shape in shapes_of(compiled) for size in shape if not isinstance(size, int)} == set()
    one_epoch(network)
    assert len(compiled) == after_one_epoch  # a second epoch compiles nothing


def test_compiled_pair_follows_the_votes(graphs):
    compiled, backend = graphs
    pair = make_pair().eval()
    set_deep_supervision(pair, False)
    network = torch.compile(pair, backend=backend)
    images = torch.randn(1, 1, 8, 8, 8)
    of_epochs = [torch.tensor([[0.5, of_a, 0.5], [0.5, 1 - of_a, 0.5]]) for of_a in (0.0, 1.0, 0.0)]
    with torch.inference_mode():
        logits_a, logits_b = pair.sub_network_a(images), pair.sub_network_b(images)
        for pair.votes in (None, *of_epochs, None):
            torch.testing.assert_close(network(images), pair.combined(logits_a, logits_b), rtol=1e-4, atol=1e-6)
    assert len(compiled) == 2  # without votes and with some, whatever they are


def shapes_of(compiled) -> list[torch.Size]:
    """Of what goes into the graphs; a graph for batches of any size has a symbol there."""
    return [
        node.meta["example_value"].shape
        for graph in compiled
        for node in graph.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("example_value"), torch.Tensor)
    ]


def low_memory_steps(network: nn.Module) -> None:
    """Both forward passes of a step of one network at a time, with ever fewer patches."""
    pair = unwrapped(network)
    network.train()
    for num_patches in (2, 1):
        for output in ("b", "a"):
            with pair.giving(output):
                with torch.no_grad():
                    network(torch.zeros(num_patches, 1, 8, 8, 8))
                flat(network(torch.zeros(num_patches, 1, 8, 8, 8)))[0].sum().backward()


@pytest.mark.parametrize("allowed", [False, True])
def test_low_memory_mode_stays_compiled(graphs, allowed):
    _, backend = graphs
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        if allowed:
            allow_graphs_of_all_outputs()
        network = torch.compile(make_pair(), backend=backend)
        one_epoch(network)
        with nullcontext() if allowed else pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            low_memory_steps(network)


@pytest.mark.slow
def test_compiled_pair_in_ddp(graphs, tmp_path):
    _, backend = graphs
    expected = one_epoch(make_pair())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        network = DistributedDataParallel(torch.compile(make_pair(), backend=backend))
        assert isinstance(unwrapped(network), CoTrainedPair)
        for actual, wanted in zip(one_epoch(network), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)
    finally:
        dist.destroy_process_group()
