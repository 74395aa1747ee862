"""The command line as a user meets it: exit codes, one clear sentence, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryoai.cli import main
from cryoai.run.config import ReconstructConfig, load_config

COMMANDS = ("demo", "info", "simulate", "reconstruct", "infer", "select", "evaluate")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and what was written to standard error."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


def copy_of(simulated: Path, folder: Path) -> Path:
    """A simulated set that a test may spoil."""
    folder.mkdir()
    for name in ("particles.star", "particles.mrcs"):
        (folder / name).write_bytes((simulated / name).read_bytes())
    return folder / "particles.star"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    assert f"cryoai {command}" in capsys.readouterr().out


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, cryoai, cryoai.cli; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_known_poses_and_evaluate_from_the_command_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    star = tiny / "particles.star"
    main(["reconstruct", str(star), "-o", str(out), "--known-poses"])
    said = " ".join(capsys.readouterr().out.split())  # as wide as the terminal
    result = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"SCF* {result['views_scf']:.2f}" in said and result["views_scf"] > 0.8
    assert f"emptiest cone {result['views_emptiest_cone_deg']:.0f}°" in said
    assert "Fourier space 100 % filled" in said and result["views_filled_share"] == 1
    assert "views are missing" not in said
    expected = ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "particles.star", "fsc.csv", "report.html")
    for name in (*expected, "metrics.jsonl", "config.yaml"):
        assert (out / name).stat().st_size > 0
    report = tmp_path / "evaluation.json"
    words = ("--map", out / "map.mrc", "--true-map", tiny / "true_map.mrc", "--poses", out / "particles.star")
    code, _ = run(capsys, "evaluate", *words, "--true-poses", star, "--json", report)
    assert code == 0
    figures = json.loads(report.read_text())
    assert figures["hand"] == "same"
    assert figures["rotation_error_median"] < 1e-6
    assert {"fsc_0.5_px", "fsc_0.5_angstrom", "fsc_0.143_px", "fraction_rotation_above_10deg"} <= set(figures)


def test_missing_stack(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = copy_of(tiny, tmp_path / "in")
    (tmp_path / "in" / "particles.mrcs").unlink()
    code, message = run(capsys, "reconstruct", star, "-o", tmp_path / "out")
    assert code == 2 and "particles.mrcs" in message and "--datadir" in message
    assert "Traceback" not in message and not (tmp_path / "out").exists()


def test_truncated_stack(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = copy_of(tiny, tmp_path / "in")
    stack = tmp_path / "in" / "particles.mrcs"
    os.truncate(stack, 1024 + 150 * 24 * 24 * 4 + 7)
    code, message = run(capsys, "reconstruct", star, "-o", tmp_path / "out")
    assert code == 2 and "truncated" in message and "150" in message


def test_index_beyond_the_stack(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = copy_of(tiny, tmp_path / "in")
    star.write_text(star.read_text().replace("000010@", "000999@"))
    code, message = run(capsys, "reconstruct", star, "-o", tmp_path / "out")
    assert code == 2 and "999" in message and "10" in message


def test_images_that_are_not_square(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = copy_of(tiny, tmp_path / "in")
    with mrcfile.new(tmp_path / "in" / "particles.mrcs", overwrite=True) as stack:
        stack.set_data(np.zeros((200, 24, 20), np.float32))
    code, message = run(capsys, "reconstruct", star, "-o", tmp_path / "out")
    assert code == 2 and "square" in message


def test_two_boxes_in_one_set(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = copy_of(tiny, tmp_path / "in")
    with mrcfile.new(tmp_path / "in" / "other.mrcs") as stack:
        stack.set_data(np.zeros((200, 20, 20), np.float32))
    star.write_text(star.read_text().replace("000010@particles.mrcs", "000010@other.mrcs"))
    code, message = run(capsys, "reconstruct", star, "-o", tmp_path / "out")
    assert code == 2 and "20" in message and "24" in message


def test_no_ctf_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--phantom", "--box-size", 24, "--pixel-size", 10, "--n-particles", 60, "--no-ctf", "--quiet")
    assert run(capsys, "simulate", *words, "-o", tmp_path / "in")[0] == 0
    star = tmp_path / "in" / "particles.star"
    code, message = run(capsys, "reconstruct", star, "-o", tmp_path / "out", "--known-poses")
    assert code == 2 and "--no-ctf" in message
    known = ("--known-poses", "--no-ctf", "--quiet")
    assert run(capsys, "reconstruct", star, "-o", tmp_path / "out", *known)[0] == 0


def test_zero_particles(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = copy_of(tiny, tmp_path / "in")
    star.write_text("\n".join(line for line in star.read_text().splitlines() if "@" not in line) + "\n")
    code, message = run(capsys, "reconstruct", star, "-o", tmp_path / "out")
    assert code == 2 and "particle" in message


def test_folder_with_another_run_is_refused(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star, out = tiny / "particles.star", tmp_path / "out"
    assert run(capsys, "reconstruct", star, "-o", out, "--known-poses", "--quiet")[0] == 0
    before = (out / "map.mrc").read_bytes()
    code, message = run(capsys, "reconstruct", star, "-o", out, "--known-poses")
    assert code == 2 and "--resume" in message and "--overwrite" in message
    assert (out / "map.mrc").read_bytes() == before
    assert run(capsys, "reconstruct", star, "-o", out, "--known-poses", "--overwrite", "--quiet")[0] == 0


def test_the_input_is_never_overwritten(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = copy_of(tiny, tmp_path / "in")
    before = star.read_bytes()
    code, message = run(capsys, "reconstruct", star, "-o", tmp_path / "in", "--known-poses", "--overwrite")
    assert code == 2 and "another -o" in message and star.read_bytes() == before


def test_a_refused_option_does_not_lock_the_folder(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("reconstruct", tiny / "particles.star", "-o", tmp_path / "out", "--known-poses", "--quiet")
    code, message = run(capsys, *words, "--box-size", 64)
    assert code == 2 and "64" in message
    assert run(capsys, *words)[0] == 0


def test_full_disk_leaves_nothing_under_a_final_name(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target).name == "mask.mrc":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    out = tmp_path / "out"
    code, message = run(capsys, "reconstruct", tiny / "particles.star", "-o", out, "--known-poses", "--quiet")
    assert code == 1 and "disk full" in message and "mask.mrc" in message
    assert not (out / "mask.mrc").exists() and not (out / "map.mrc").exists()
    leftovers = {path.name for path in out.iterdir()} - {"checkpoint", "config.yaml", "half1.mrc", "half2.mrc"}
    assert not leftovers


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("reconstruct", "nowhere.star", "-o", "out"), "nowhere.star"),
        (("reconstruct", "image.tif", "-o", "out"), ".star"),
        (("reconstruct",), "particles"),
        (("reconstruct", "x.star", "-o", "out", "--box-sise", "32"), "--box-sise"),
        (("reconstruct", "x.star", "-o", "out", "--method", "magic"), "magic"),
        (("evaluate", "--map", "a.mrc"), "--true-map"),
        (("reconstruct", "x.star", "-o", "out", "--encoder", "perhaps"), "perhaps"),
        (("infer", "x.star", "-o", "out.star"), "--run"),
        (("infer", "x.star", "--run", "nowhere", "-o", "out.star"), "nowhere"),
        (("infer", "x.star", "--run", ".", "-o", "out.star", "--no-refin"), "--no-refin"),
        (("simulate", "--phantom", "--box-size", "8", "--pixel-size", "5", "--n-particles", "5", "-o", "o"), "box"),
    ],
)
def test_wrong_options_exit_with_2(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, message = run(capsys, *words)
    assert code == 2 and expected in message
    assert len(message.strip().splitlines()) == 1


def test_misspelt_configuration_key_gets_a_suggestion(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("bootstrap: {stepps: 10}\n")
    words = ("reconstruct", tiny / "particles.star", "-o", tmp_path / "out", "--config", file)
    code, message = run(capsys, *words)
    assert code == 2 and "did you mean 'steps'" in message and "options.yaml" in message
    file.write_text("refine: {max_rounds: 0}\n")
    code, message = run(capsys, *words)
    assert code == 2 and "max_rounds" in message and "--method amortized" in message
    assert not (tmp_path / "out").exists()


def test_options_override_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("seeds: 5\nseed: 9\n")
    assert load_config(file, {"seed": 2}) == ReconstructConfig(seeds=5, seed=2)
