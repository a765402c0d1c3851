"""Training on random degradations: nothing is projected, and runs resume and are equal for any number of processes."""

import pytest
import torch
from runs import assert_like, assert_same, log, on_processes, weights, write

from hvae_sr import SuperResolutionPipeline
from hvae_sr.data import degrade
from hvae_sr.training import parse_arguments
from hvae_sr.training.batches import build_training_set, build_validation_set
from hvae_sr.training.networks import build_objective

COMMON = {
    "degradation": "real", "max_train_steps": 4, "checkpointing_steps": 2, "crops_per_image": 2, "train_batch_size": 4,
    "score_patch_sizes": 4, "lr_scheduler": "constant", "validation_steps": 4, "validation_images": 1,
}  # fmt: skip


def test_a_run_resumes_and_two_processes_train_like_one(options, run, photos, tmp_path):
    common = COMMON | {"validation_data_dir": photos}
    one, back, two = tmp_path / "one", tmp_path / "back", tmp_path / "two"
    records = run("energy-score", one, **common)
    run("energy-score", back, **common, dataloader_num_workers=1, resume_from_checkpoint=one / "checkpoint-2")
    assert_same(weights(one), weights(back))
    on_processes(options("energy-score", two, **common | {"train_batch_size": 2}))
    assert_like(records, log(two), 1e-4, 1e-6)
    assert SuperResolutionPipeline.from_pretrained(one).config.consistency == "none"


@pytest.mark.parametrize("samples", [1, 2])
def test_the_objective_projects_nothing_and_learns_from_the_degraded_image(samples, configure):
    config = configure("energy-score", **COMMON, score_samples=samples, score_point_weight=1)
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


def test_images_held_out_have_their_own_degradations_that_stay(configure, photos):
    config = configure("energy-score", **COMMON, validation_data_dir=photos)
    first = build_validation_set(config)[0]
    assert torch.equal(first["low"], degrade(first["image"], "real", config.seed, 1 << 63, 4))


@pytest.mark.parametrize(
    "stage, changes, words",
    [
        ("energy-score", {"degradation": "unreal"}, ["`degradation`", "unreal", "mild-jpeg"]),
        ("energy-score", {"consistency": "exact"}, ["`consistency`", "exact"]),  # a projection on an unknown H
        ("vdvae", {}, ["`stage`", "vdvae"]),
        ("energy-score", {"consistency": "soft"}, ["`consistency`", "exact, none", "soft"]),
    ],
)
def test_options_that_do_not_go_together_are_named(stage, changes, words, configure):
    with pytest.raises(ValueError) as caught:
        configure(stage, **COMMON | changes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_file_beside_a_recipe_is_found_and_written_down_whole(options, tmp_path):
    write(tmp_path / "mine.yaml", "steps: [{step: noise, sigma: 4}]")
    write(tmp_path / "recipe.yaml", "degradation: mine.yaml")
    arguments = options("energy-score", tmp_path / "out", **{**COMMON, "degradation": None})
    config = parse_arguments(["--config", str(tmp_path / "recipe.yaml"), *arguments])
    assert config.degradation == str(tmp_path / "mine.yaml") and not config.exact
