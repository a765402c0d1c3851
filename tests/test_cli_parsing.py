"""How the command line is read: spelling, habits of related programs, typing errors."""

import pytest

from hvae_sr.cli import COMMANDS, main, parse


@pytest.mark.parametrize(
    "typed",
    [
        "upscale a.png b.png -o out --num-samples 3 --outscale 2 --model natural-x4",
        "upscale a.png b.png -o out --num_samples=3 --scale 2 -n natural-x4",
        "a.png b.png -o out --num-samples 3 -s 2 --model natural-x4",
        "-i a.png b.png -o out -s 2 -n natural-x4 --num-samples 3",
        "-o out -s 2 -n natural-x4 --num-samples 3 -i a.png b.png",
        "--input=a.png b.png -o out -s 2 -n natural-x4 --num-samples 3",
    ],
)
def test_habits_of_related_programs_mean_the_same(typed):
    options = parse(typed.split())
    assert (
        options.inputs == ["a.png", "b.png"] and options.output_dir == "out" and options.run is COMMANDS["upscale"].run
    )
    assert (options.num_samples, options.outscale, options.model) == (3, 2.0, "natural-x4")


@pytest.mark.parametrize(
    ("typed", "said", "usage"),
    [
        ("upscael a.png", "did you mean `hvae-sr upscale`?", "commands: upscale, "),
        ("--verson", "no option --verson; did you mean --version?", "commands: upscale, "),
        ("upscale a.png --num-sampels 3", "no option --num-sampels; did you mean --num-samples?", "hvae-sr upscale"),
        ("upscale a.png --num 3", "no option --num", "hvae-sr upscale"),  # no silent abbreviation
        ("upscale a.png --num_images_per_prompt 3", "did you mean --num-samples?", "hvae-sr upscale"),
        ("upscale a.png -x", "did you mean --self-ensemble?", "hvae-sr upscale"),
        ("upscale a.png -o out b.png", "'b.png' has no place here", "hvae-sr upscale"),
        ("evaluate --dta x", "no option --dta; did you mean --data?", "hvae-sr evaluate"),
        ("evaluate", "required: --data", "hvae-sr evaluate"),
        ("upscale a.png --num-samples x", "invalid int value: 'x'", "hvae-sr upscale"),
        ("upscale a.png --like=", "`--like` is empty", "hvae-sr upscale"),
        ("evaluate --data x -o y --model=", "`--model` is empty", "hvae-sr evaluate"),
    ],
)
def test_typing_errors_name_what_may_have_been_meant_with_the_usage_of_the_command(typed, said, usage, capsys):
    assert main(typed.split()) == 2
    *above, last = capsys.readouterr().err.splitlines()
    assert said in last and usage in above[0]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("analyse", "temperature: of the strip (default 0 0.25 0.5 0.75 1)"),
        ("analyse", "two photographs that come with scikit-image (distance: none)"),
        ("figures", "metric of the plane; default: the first of these that all reports have"),
    ],
)
def test_help_tells_what_is_taken_by_default(command, said, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_spells_every_option_with_dashes(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert not [word for word in capsys.readouterr().out.split() if word.startswith("--") and "_" in word]
