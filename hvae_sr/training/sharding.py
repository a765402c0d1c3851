"""The averaged weights, and parameters that are shared out over processes (FSDP)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_torch_version
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from .config import TrainingConfig
from .networks import build_objective
from .objectives import Objective


def check_sharding(accelerator: Accelerator) -> None:
    """Makes FSDP compute as the other ways of running do.

    Under mixed precision, FSDP's own policy would round to half precision whatever enters or leaves a block, the noise,
    the Gaussians and their KL among it. Autocast computes the convolutions in half precision and those in float32.

    Raises:
        ValueError: version 1 of FSDP, whose flat parameters can neither be averaged nor gathered by name; or a torch
            below 2.7, whose `fully_shard` does not take what accelerate 1.12 gives it.
    """
    if not accelerator.is_fsdp2:
        raise ValueError("FSDP must be of version 2: `fsdp_version: 2` in accelerate's configuration file")
    if not is_torch_version(">=", "2.7"):
        raise ValueError(f"FSDP needs torch 2.7 or later, found {torch.__version__}")
    accelerator.state.fsdp_plugin.mixed_precision_policy = None


def whole(tensor: Tensor) -> Tensor:
    """The tensor, put together if processes hold parts of it. Then a collective operation."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Average(EMAModel):
    """diffusers' `EMAModel`, of shared-out parameters too: checkpoints hold whole tensors in either case."""

    shadow_params: list[Tensor]

    def state_dict(self) -> dict[str, Any]:
        """A collective operation where parameters are shared out."""
        state = super().state_dict()
        if any(isinstance(shadow, DTensor) for shadow in self.shadow_params):
            state["shadow_params"] = [whole(shadow).cpu() for shadow in self.shadow_params]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Shares the tensors out as those are that they replace."""
        old = self.shadow_params
        super().load_state_dict(state_dict)
        self.shadow_params = [
            distribute_tensor(new.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
            if isinstance(like, DTensor)
            else new.to(like.device)  # accelerate loads it to the CPU
            for new, like in zip(self.shadow_params, old, strict=True)
        ]


@contextmanager
def averaged(objective: Objective, average: Average | None, config: TrainingConfig) -> Iterator[Objective]:
    """The objective with the averaged weights if there are any, whole on every process. A collective operation.

    Of one whose parameters are shared out it is a copy.
    """
    trained = {name: x for name, x in objective.named_parameters() if x.requires_grad}
    if any(isinstance(x, DTensor) for x in objective.parameters()):
        averages = dict(zip(trained, average.shadow_params, strict=True)) if average is not None else {}
        copy = build_objective(config, load_weights=False)
        copy.load_state_dict({name: whole(averages.get(name, x)) for name, x in objective.state_dict().items()})
        yield copy.to(next(objective.parameters()).device).train(objective.training)
        return
    if average is None:
        yield objective
        return
    average.store(trained.values())
    average.copy_to(trained.values())
    try:
        yield objective
    finally:
        average.restore(trained.values())
