"""What `SuperResolutionPipeline` and those of the compared systems share: H, loading, and the checks of a call."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from huggingface_hub import constants

from hvae_sr.checkpoints.names import resolve
from hvae_sr.loading import DAMAGED, given_dtype, saving, without_warning
from hvae_sr.operators import Downsampling, cached_downsampling

from .inputs import SamplingOptions, check_components

_AS_THEY_ARE: Any = object()
"""In the place of a dtype, where networks are not to be cast."""


@dataclass(frozen=True)
class Call:
    """What holds for all photographs of a call, checked; `own` are a compared system's own arguments."""

    temperature: float | Sequence[float]
    enforce_consistency: bool
    batch_size: int | None
    output_type: str
    options: SamplingOptions
    num_conditioned_groups: int | None = None
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def keep_latents(self) -> bool:
        """Whether the latents of all samples are returned."""
        return self.options.return_latents or self.output_type == "latent"


class PhotoPipeline(DiffusionPipeline):
    """A pipeline of this package's networks, and of no others, for an H that its configuration names."""

    component_classes: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Names of components and of the classes that they may have, such as "hvae_sr.VDVAE"."""

    @property
    def operator(self) -> Downsampling:
        """H, as the configuration says; its matrices are shared by all who use the same."""
        return cached_downsampling(self.config.scale_factor, self.config.downsampling_kernel)

    @property
    def projects(self) -> bool:
        """Whether samples are projected on {x : Hx = y} where a call does not say."""
        config = self.config
        return bool(config.get("enforce_consistency", config.get("consistency") == "exact"))

    @contextmanager
    def _releasing(self) -> Iterator[None]:
        """Offloaded networks leave the device at the end, also after an error."""
        try:
            yield
        finally:
            self.maybe_free_model_hooks()

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """`DiffusionPipeline.load_config`, for an index that names the classes of this pipeline alone.

        diffusers would import the module of any other class, before a pipeline could refuse it.
        """
        found = super().load_config(*args, **kwargs)
        check_components(found[0] if isinstance(found, tuple) else found, cls.component_classes)
        return found

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Loads a pipeline from a bundled name, a folder that `save_pretrained` or `hvae-sr convert` wrote, or the Hub.

        Raises:
            ValueError: an unknown name, or a folder that is damaged or holds something else.
            OSError: what the Hub answers.
        """
        folder = resolve(pretrained_model_name_or_path)
        if os.path.isdir(folder) and not os.path.isfile(os.path.join(folder, "model_index.json")):
            raise ValueError(f"cannot load {folder!r}: it holds no model_index.json, so no pipeline")
        given_dtype(kwargs)
        try:
            with without_warning("You have passed a non-standard module"):  # ours, and checked
                return super().from_pretrained(folder, **cls._loading_options(folder, kwargs))
        except DAMAGED as error:
            if isinstance(error, OSError) and not os.path.isdir(folder):
                if constants.HF_HUB_OFFLINE:
                    raise OSError(
                        f"{folder} is not in the cache, and HF_HUB_OFFLINE says not to ask the Hub"
                    ) from error
                raise  # of the Hub or the network, which says what it is
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = reason if len(reason) <= 1000 else f"{reason[:1000]}..."
            raise ValueError(f"cannot load {os.fspath(pretrained_model_name_or_path)!r}: {reason}") from error

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """`DiffusionPipeline.save_pretrained`, whole or not at all: never networks of two savings beside each other.

        Raises:
            ValueError: `save_directory` is a file, `variant` is no part of a file's name, or a network's class is one
                that would not be loaded again.
            OSError: it cannot be written to; what was there is left as it was.
        """
        check_components(self.config, self.component_classes)
        with saving(save_directory, "model_index.json", variant, kwargs) as temporary:
            super().save_pretrained(temporary, safe_serialization=safe_serialization, variant=variant, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """`DiffusionPipeline.from_pipe`; networks, which both pipelines have, are cast if a dtype is given, else not.

        Raises:
            ValueError: anything but a floating-point dtype.
        """
        if given_dtype(kwargs) is None:  # where diffusers casts to float32
            custom = kwargs.get("custom_pipeline") is not None  # may be of any class, whose `to` is not the one below
            kwargs["dtype"] = pipeline.dtype if custom else _AS_THEY_ARE
        return super().from_pipe(pipeline, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """`DiffusionPipeline.to`."""
        if any(value is _AS_THEY_ARE for value in (*args, *kwargs.values())):  # asked by `from_pipe`
            return self
        return super().to(*args, **kwargs)

    @classmethod
    def _loading_options(cls, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        """What diffusers' loader is given, from what `from_pretrained` was given."""
        return options
