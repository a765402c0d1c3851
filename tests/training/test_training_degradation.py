"""Training on random degradations: nothing is projected, and runs resume and are equal for any number of processes."""

import pytest
import torch
from runs import assert_same, log, on_processes, weights

import train
from hvae_sr import SuperResolutionPipeline
from hvae_sr.data import degrade
from hvae_sr.training import parse_arguments
from hvae_sr.training.batches import build_training_set, build_validation_set
from hvae_sr.training.networks import build_objective

COMMON = {
    "degradation": "real", "max_train_steps": 4, "checkpointing_steps": 2, "crops_per_image": 2, "train_batch_size": 4,
    "score_patch_sizes": 4, "lr_scheduler": "constant", "validation_steps": 4, "validation_images": 1,
}  # fmt: skip


def test_a_run_resumes_and_two_processes_train_like_one(options, photos, tmp_path):
    common = COMMON | {"validation_data_dir": photos}
    one, back, two = tmp_path / "one", tmp_path / "back", tmp_path / "two"
    assert train.main(options("energy-score", one, **common)) == 0
    resumed = options("energy-score", back, **common, dataloader_num_workers=1)
    assert train.main([*resumed, "--resume_from_checkpoint", str(one / "checkpoint-2")]) == 0
    assert_same(weights(one), weights(back))
    on_processes(options("energy-score", two, **common | {"train_batch_size": 2}))
    for expected, found in zip(log(one), log(two), strict=True):
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-3 if "psnr" in name else 1e-4, abs=1e-6), name
    pipe = SuperResolutionPipeline.from_pretrained(one)
    assert pipe.config.consistency == "none"


@pytest.mark.parametrize("samples", [1, 2])
def test_the_objective_projects_nothing_and_learns_from_the_degraded_image(samples, options, tmp_path):
    config = parse_arguments(options("energy-score", tmp_path, **COMMON, score_samples=samples, score_point_weight=1))
    objective, crops = build_objective(config), build_training_set(config, 0, 1)
    item = crops[3]
    expected = degrade(item["image"], "real", config.seed, 3, 4)
    assert torch.equal(item["low"], expected)
    crops.set_epoch(2)
    again = crops[3]
    assert torch.equal(again["low"], degrade(again["image"], "real", config.seed, (2 << 32) + 3, 4))
    images, low = item["image"][None], item["low"][None]
    y = low.float() / 127.5 - 1
    condition = objective.lr_network.encode(y)
    found = objective.samples(y, tuple(images.shape[-2:]), [0], condition)
    assert len(found) == samples
    assert (objective.operator(found[0]) - y).abs().max() > 1e-2
    loss, figures = objective(images, [0], low=low)
    assert loss.requires_grad and torch.isfinite(loss) and "point_error" in figures


def test_images_held_out_have_their_own_degradations_that_stay(options, photos, tmp_path):
    config = parse_arguments(options("energy-score", tmp_path, **COMMON, validation_data_dir=photos))
    first = build_validation_set(config)[0]
    assert torch.equal(first["low"], degrade(first["image"], "real", config.seed, 1 << 63, 4))


BAD = {
    "an unknown name": ({"degradation": "unreal"}, ["`degradation`", "unreal", "mild-jpeg"]),
    "a projection on an unknown H": ({"consistency": "exact"}, ["`consistency`", "exact"]),
    "a stage without y": ({"stage": "vdvae"}, ["`stage`", "vdvae"]),
    "an unknown consistency": ({"consistency": "soft"}, ["`consistency`", "exact, none", "soft"]),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_do_not_go_together_are_named(case, options, tmp_path):
    changes, words = BAD[case]
    stage = changes.pop("stage", "energy-score")
    with pytest.raises(ValueError) as caught:
        parse_arguments(options(stage, tmp_path, **COMMON | changes))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_file_beside_a_recipe_is_found_and_written_down_whole(options, photos, tmp_path):
    (tmp_path / "mine.yaml").write_text("steps: [{step: noise, sigma: 4}]")
    (tmp_path / "recipe.yaml").write_text("degradation: mine.yaml")
    arguments = options(
        "energy-score", tmp_path / "out", **{name: value for name, value in COMMON.items() if name != "degradation"}
    )
    config = parse_arguments(["--config", str(tmp_path / "recipe.yaml"), *arguments])
    assert config.degradation == str(tmp_path / "mine.yaml") and not config.exact
