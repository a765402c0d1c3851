"""The sampler as a block for diffusers' modular pipelines, alone or between blocks of others."""

import dataclasses
import inspect
import os
from typing import Any

from diffusers.modular_pipelines import ComponentSpec, InputParam, ModularPipeline, ModularPipelineBlocks, OutputParam
from diffusers.modular_pipelines.modular_pipeline_utils import ConfigSpec

from hvae_sr.checkpoints.names import resolve
from hvae_sr.models import VDVAE, LRConditioner

from .inputs import SamplingOptions, check_components
from .output import SuperResolutionOutput
from .super_resolution import SuperResolutionPipeline

_CALL = inspect.signature(SuperResolutionPipeline.__call__).parameters
_INIT = inspect.signature(SuperResolutionPipeline.__init__).parameters
_NOT_INPUTS = ("self", "return_dict", "options", "named")


class SuperResolutionBlock(ModularPipelineBlocks):
    """`SuperResolutionPipeline` as one step: image -> images, mean, std, lr_psnr, seeds and the other outputs.

    Inputs, their defaults and errors are those of `SuperResolutionPipeline.__call__`, the configuration that of its
    `model_index.json`, the components its networks.

        pipe = SuperResolutionBlock().init_pipeline("natural-x4")
        pipe.load_components()
        images = pipe(image=photo, num_samples=5, seed=0, output="images")

    As the pipeline, it computes fast where the configuration says so; `pipe.update_components(fast_inference=False)`
    computes in the dtype of the weights.

    In `SequentialPipelineBlocks`, `image` may come from a block before, and blocks after it read `images` or `std`.
    """

    model_name = "hvae-sr"

    @property
    def description(self) -> str:
        """What the block does, for people."""
        return (
            "Draws samples of p(x|y) for a low-resolution image y with a hierarchical VAE, one network evaluation each."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The networks; whether the second is an `LREncoder` or an `LRConditioner`, the folder tells."""
        return [
            ComponentSpec("vdvae", VDVAE, description="the prior"),
            ComponentSpec("lr_encoder", LRConditioner, description="LRConditioner or LREncoder: what y brings in"),
        ]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """The scalars of model_index.json."""
        names = [name for name in _INIT if name != "self" and name not in self.component_names]
        return [ConfigSpec(name, _INIT[name].default) for name in names]

    @property
    def inputs(self) -> list[InputParam]:
        """The arguments of the pipeline's call."""
        given = [(name, _CALL[name].annotation, _CALL[name].default) for name in _CALL if name not in _NOT_INPUTS]
        given += [(field.name, field.type, field.default) for field in dataclasses.fields(SamplingOptions)]
        return [
            InputParam(
                name,
                type_hint=annotation,
                default=None if default is inspect.Parameter.empty else default,
                required=default is inspect.Parameter.empty,
                description=f"`{name}` of `SuperResolutionPipeline`",
            )
            for name, annotation, default in given
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The fields of `SuperResolutionOutput`."""
        return [
            OutputParam(field.name, type_hint=field.type, description=f"`{field.name}` of `SuperResolutionOutput`")
            for field in dataclasses.fields(SuperResolutionOutput)
        ]

    def set_progress_bar_config(self, **options: Any) -> None:
        """What tqdm gets, such as `disable=True`: a sequence passes on what its pipeline is told."""
        self._progress_bar_config = options

    def init_pipeline(
        self, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, *args: Any, **kwargs: Any
    ) -> ModularPipeline:
        """A pipeline of this block for a bundled name, a folder or a Hub id; `load_components` reads the weights.

        Raises:
            ValueError: an unknown name, or an index that names classes of others as networks.
        """
        folder = None if pretrained_model_name_or_path is None else resolve(pretrained_model_name_or_path)
        if folder is not None:
            indices = ModularPipeline._load_pipeline_config(folder)
            values = [(name, value) for index in indices if index for name, value in index.items()]
            # A modular index says of a component (library, class) also where to load it from.
            pairs = {name: value[:2] if isinstance(value, (list, tuple)) else value for name, value in values}
            check_components(pairs, SuperResolutionPipeline.component_classes)
        pipeline = super().init_pipeline(folder, *args, **kwargs)
        # diffusers' own reaches the blocks of a sequence, and not a block that is alone.
        setattr(pipeline, "set_progress_bar_config", pipeline._blocks.set_progress_bar_config)  # noqa: B010
        return pipeline

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Runs the step on what the state holds.

        Raises:
            ValueError: networks that were not loaded, and what `SuperResolutionPipeline` raises.
        """
        networks = {name: getattr(components, name) for name in self.component_names}
        missing = [name for name, network in networks.items() if network is None]
        if missing:
            raise ValueError(f"{', '.join(missing)} not loaded: call `load_components` or `update_components` first")
        scalars = {spec.name: components.config[spec.name] for spec in self.expected_configs}
        block_state = self.get_block_state(state)
        pipe = SuperResolutionPipeline(**networks, **scalars)
        pipe.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        out = pipe(**block_state.as_dict())
        for output in self.intermediate_outputs:
            setattr(block_state, output.name, getattr(out, output.name))
        self.set_block_state(state, block_state)
        return components, state
