"""One model over several processes: each holds its share of every weight (Zhao et al. 2023, arXiv:2304.11277).

A layer's weights are gathered for its pass and let go behind it (torch's `fully_shard`); its gradients are added up
over the processes, and each keeps those of its own share. A process is called a rank, as torch does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ftbench.errors import Skip
from ftbench.training.batching import MicroBatch, cut
from ftbench.training.encoding import EncodedExample

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long one rank waits for the others: the longest of what one does alone is to write a large model to a disk."""

_GATHERED = "_ftbench_gathered"


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model together, and which of them this is; by default there is no other."""

    count: int = 1
    index: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the one that reports and writes."""
        return self.index == 0

    def connect(self, device: "torch.device") -> None:
        """Join the others, whose address the launcher has put into the environment."""
        import torch.distributed as dist

        if self.count > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, rank=self.index, world_size=self.count, timeout=PATIENCE)

    def part(self) -> None:
        """Leave the others."""
        import torch.distributed as dist

        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wait(self) -> None:
        """Wait until all have come here."""
        import torch.distributed as dist

        if self.count > 1:
            dist.barrier()

    def total(self, part: "Tensor") -> "Tensor":
        """Return the sum over the ranks."""
        import torch.distributed as dist

        if self.count > 1:
            dist.all_reduce(part)
        return part

    def norm(self, part: "Tensor") -> "Tensor":
        """Return the 2-norm of all, from that of what each rank holds."""
        return part if self.count == 1 else self.total(part.square()).sqrt()

    def gather(self, part: T) -> list[T]:
        """Return what each rank gives, in their order."""
        import torch.distributed as dist

        found: list[Any] = [part] * self.count
        if self.count > 1:
            dist.all_gather_object(found, part)
        return found

    def agree(self, value: T) -> T:
        """Return what the first rank says: what is decided by a clock, or a file that it sees to, is decided alike."""
        return value if self.count == 1 else self.gather(value)[0]


@contextmanager
def pretended(ranks: int, device: "torch.device") -> "Iterator[DeviceMesh | None]":
    """Be the first of so many ranks that are not there: tensors without values need not be sent.

    Yields:
        What `shard` divides over; None where there is nothing to divide.
    """
    import torch.distributed as dist

    if ranks == 1:
        yield None
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield make_mesh(ranks, device)
    finally:
        dist.destroy_process_group()


def deal(examples: Sequence[EncodedExample], micro_batch_tokens: int, ranks: int) -> list[list[MicroBatch]]:
    """Cut a step into micro-batches for each rank, so that all have about the same tokens to read.

    All have the same number of micro-batches, for a layer is gathered by all together; where examples do not suffice
    the last ones are empty.

    Args:
        examples: of the step.
        micro_batch_tokens: real tokens of a micro-batch, at most.
        ranks: how many.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(examples)), key=lambda index: -examples[index].tokens):
        lightest = loads.index(min(loads))
        shares[lightest].append(index)
        loads[lightest] += examples[index].tokens
    cuts = [cut([examples[index] for index in sorted(share)], micro_batch_tokens) for share in shares]
    most = max(map(len, cuts))
    return [[*batches, *[()] * (most - len(batches))] for batches in cuts]


def decoder_layers(model: "torch.nn.Module") -> "list[torch.nn.Module]":
    """Return the model's layers in their order; empty where it is not built of transformers' layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def make_mesh(ranks: int, device: "torch.device") -> "DeviceMesh":
    """Return the devices that a model is divided over: one of each rank."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (ranks,))


def shard(model: "PreTrainedModel", mesh: "DeviceMesh") -> None:
    """Leave each rank its share of every weight, on its device; all must call it.

    Gradients are summed, not averaged: a micro-batch's loss is already its part of the whole step's. They are summed
    in float32, whatever the weights are in.

    Args:
        model: whole and the same on every rank, on any device.
        mesh: the devices.

    Raises:
        Skip: the model holds what cannot be divided.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    settings: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
        "reshard_after_forward": True,  # or the outermost stayed whole after a pass without a backward pass
    }
    try:
        for module in [*decoder_layers(model), *_apart(model)]:
            fully_shard(module, **settings)
        fully_shard(model, **settings)
    except (ValueError, NotImplementedError) as error:
        raise Skip(f"cannot be spread over several devices: {' '.join(str(error).split())[:200]}") from error
    gathered: list[torch.nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            # Room for whole weights is made here once: made within inference_mode, it could not be trained in.
            module.unshard()
            gathered += [one for one in module.parameters() if not is_shard(one)]
            module.reshard()
    setattr(model, _GATHERED, gathered)


def _apart(model: "PreTrainedModel") -> "list[torch.nn.Module]":
    """Return the embedding and the head, if they share no weight: then neither need stay while the other is at work."""
    pair = model.get_input_embeddings(), model.get_output_embeddings()
    weights = [getattr(module, "weight", None) for module in pair]
    if None in pair or any(weight is None for weight in weights) or weights[0] is weights[1]:
        return []
    return list(pair)


def gathered_weights(model: "PreTrainedModel") -> "list[torch.nn.Parameter]":
    """Return the whole weights of a model that was sharded: each has memory only while its layer is at work."""
    return getattr(model, _GATHERED, [])


def is_shard(tensor: "Tensor") -> bool:
    """Whether it is one of those that lie on several ranks."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def held(tensor: "Tensor") -> "Tensor":
    """Return what this rank holds of a tensor."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def unite(model: "PreTrainedModel", ranks: Ranks) -> None:
    """Make the model whole again in the first rank's main memory, to be saved; all must call it.

    It cannot be trained any more. What shared a weight shares it again.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    setattr(model, _GATHERED, [])
    whole: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
            module.__class__ = type(module).__bases__[1]
    for module in model.modules():
        for name, one in module._parameters.items():
            if not isinstance(one, DTensor):
                continue
            if id(one) not in whole:
                values = one.detach().full_tensor()
                room = values.cpu() if ranks.leads else torch.empty(0, dtype=one.dtype)
                whole[id(one)] = torch.nn.Parameter(room, requires_grad=one.requires_grad)
            module._parameters[name] = whole[id(one)]
