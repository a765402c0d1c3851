"""The systems of `faces.py`: their networks, of about as many parameters, and the options of `train.py` for each."""

from typing import Any

SIDE = 64
SYSTEMS = ("CVDVAE", "HCFlow", "SR3", "DPS", "energy score")
PRIOR_BLOCKS = "1x1,4m1,4x2,8m4,8x4,16m8,16x5,32m16,32x4,64m32,64x1"
"""VD-VAE as published in kind: a spatial bias at every resolution, from one vector up."""
PRIOR = {
    "image_size": SIDE, "width": 80, "encoder_blocks": "64x1,64d2,32x2,32d2,16x2,16d2,8x2,8d2,4x1,4d4,1x1",
    "decoder_blocks": PRIOR_BLOCKS, "bottleneck_multiple": 0.25, "latent_channels": 8, "num_mixtures": 3,
    "bias_type": "spatial", "no_bias_above": SIDE, "activation": "silu",
}  # fmt: skip
LR_BLOCKS = {4: "16x3,16d2,8x2,8d2,4x1,4d4,1x1", 8: "8x4,8d2,4x2,4d4,1x1"}
ENERGY_WIDTHS = "4:96,8:96,16:72,32:48"
ENERGY_BLOCKS = {
    4: ("8x3,16m8,16x4,32m16,32x3", "16x9,16d2,8x2"),
    8: ("4x2,8m4,8x3,16m8,16x3,32m16,32x3", "8x6,8d2,4x1"),
}
"""By scale factor: of the decoder, and of the LR network, which begins at y's resolution."""
SCHEDULES = {
    "sr3": {"num_train_timesteps": 2000, "beta_start": 1e-6, "beta_end": 1e-2},
    "dps": {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 2e-2, "variance_type": "learned_range"},
}
"""As published."""
COMMON: dict[str, Any] = {
    "resolution": SIDE,
    "scales": [1.0],
    "rotate": False,
    "train_batch_size": 8,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 50,
    "ema_decay": 0.995,
    "adam_weight_decay": 0.0,
    "logging_steps": 25,
    "checkpointing_steps": 200,
    "max_train_steps": 10**7,
    "mixed_precision": "bf16",
}


def prior() -> dict[str, Any]:
    """Options of CVDVAE's prior; the hours are a half of CVDVAE's."""
    # A rate that comes in slowly lets latents come alive, which matters in a short run.
    return {
        **COMMON,
        "stage": "vdvae",
        "vdvae_config": PRIOR,
        "learning_rate": 1e-3,
        "rate_weights": ["0:0.2", "400:1"],
    }


def lr_encoder(scale: int, groups: int, folder: str) -> dict[str, Any]:
    """Options of CVDVAE's LR encoder with `groups` conditioned groups, distilled from the prior in `folder`."""
    finer = {4: "32m16,64m32", 8: "16m8,32m16,64m32"}[scale]
    network = {
        "image_size": SIDE // scale, "blocks": LR_BLOCKS[scale], "upsampling_blocks": finer, "width": 80,
        "decoder_width": 80, "decoder_blocks": PRIOR_BLOCKS, "latent_channels": 8, "bottleneck_multiple": 0.25,
        "decoder_bottleneck_multiple": 0.25, "num_conditioned_groups": groups, "activation": "silu",
        "max_deviation": 8.0,  # without it some draws for faces of another generator are not finite
    }  # fmt: skip
    given = {"stage": "lr-encoder", "lr_config": network, "pretrained_vdvae": folder, "scale_factor": scale}
    return {**COMMON, **given, "learning_rate": 2e-3, "max_grad_norm": 1.0}


def others(scale: int) -> dict[str, dict[str, Any]]:
    """Options of the systems that need no other, by name; DPS' is a prior and serves every scale."""
    decoder, blocks = ENERGY_BLOCKS[scale]
    shared = {"activation": "silu", "custom_widths": ENERGY_WIDTHS}
    vdvae = {
        **shared, "image_size": SIDE, "width": 48, "encoder_blocks": None, "decoder_blocks": decoder, "patch_size": 2,
        "bias_type": "channel", "bottleneck_multiple": 0.5, "latent_channels": 16, "num_mixtures": 3,
        "initial_log_scale": -2.5, "max_log_sigma": 2.5,
    }  # fmt: skip
    conditioner = {
        **shared, "_class_name": "LRConditioner", "image_size": SIDE // scale, "blocks": blocks, "width": 96,
        "upsampling_blocks": {4: "32m16", 8: "16m8,32m16"}[scale], "decoder_blocks": decoder, "decoder_width": 48,
        "decoder_custom_widths": ENERGY_WIDTHS, "bottleneck_multiple": 0.6667, "gate_init": 0.3, "long_skip": True,
        "likelihood_location": "projection", "scale_factor": scale,
    }  # fmt: skip
    flow = {
        "architecture": "HCFlow", "num_levels": {4: 2, 8: 3}[scale], "num_steps": {4: 8, 8: 6}[scale],
        "num_conditional_steps": {4: 4, 8: 3}[scale], "hidden_width": 32, "feature_blocks": [1, 1],
        "feature_width": {4: 48, 8: 40}[scale], "feature_growth": 16, "quantisation": 256,
        "pipeline": {"default_temperature": 0.8},
    }  # fmt: skip
    refinement = {
        "architecture": "SR3UNet", "image_size": SIDE, "width": 32, "width_multiples": [1, 2, 3],
        "attention_resolutions": [], "num_res_blocks": 1, "norm_groups": 16, "dropout": 0.0,
        "scheduler": SCHEDULES["sr3"],
    }  # fmt: skip
    wide = {"learning_rate": 5e-4, "max_grad_norm": 1e9, "skip_threshold": 1e12}  # nothing is clipped, as published
    return {
        "HCFlow": {
            **COMMON, "stage": "hcflow", "baseline": flow, "learning_rate": 2.5e-4, "adam_beta2": 0.99,
            "max_grad_norm": 100.0, "skip_threshold": 1e12, "mixed_precision": "no",  # a flow takes no other
        },
        "SR3": {**COMMON, **wide, "stage": "sr3", "baseline": refinement},
        "DPS": {**COMMON, **wide, "stage": "ddpm", "baseline": diffusion_prior()},
        "energy score": {
            **COMMON, "stage": "energy-score", "vdvae_config": vdvae, "lr_config": conditioner, "learning_rate": 2e-3,
            "score_point_weight": 1.0, "max_grad_norm": 1.0,
        },
    }  # fmt: skip


def diffusion_prior() -> dict[str, Any]:
    """The U-Net of DPS: that of guided diffusion at 64 x 64, with fewer and narrower levels."""
    from hvae_sr.baselines.guided_diffusion import published_options

    network = published_options(SIDE, 32, 1, "1,1,2,2", "8", num_head_channels=32)
    return {"architecture": "GuidedDiffusionUNet", **network, "scheduler": SCHEDULES["dps"]}
