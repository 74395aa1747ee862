"""What messages tell the user to do can be done."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import cryoai
from cryoai.cli import app, main
from cryoai.errors import InputError
from cryoai.io import StackWriter, read_particles, write_map
from cryoai.reconstruction.checks import check_particles
from cryoai.run.config import ReconstructConfig
from cryoai.types import Map

SOURCE = Path(cryoai.__file__).parent
COMMANDS = ("demo", "info", "simulate", "reconstruct", "infer", "select", "evaluate")
# Taken by the program itself, for every command.
GENERAL = {"--debug", "--help", "--version"}


def options(command):
    return {name for argument in app[command].assemble_argument_collection() for name in argument.names}


def texts(tree):
    """The string literals of a module but for its docstrings; an f-string's pieces each."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and node.body
            and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def named_options(text):
    names = {name.rstrip(".") for name in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", text)}
    return {name for name in names if not name.endswith("-")}


def test_every_option_that_a_message_names_exists():
    known = GENERAL.union(*(options(command) for command in COMMANDS))
    named = {}
    for file in SOURCE.rglob("*.py"):
        for text in texts(ast.parse(file.read_text())):
            for option in named_options(text):
                named[option] = file.relative_to(SOURCE)
    assert len(named) > 20
    assert {option: str(file) for option, file in named.items() if option not in known} == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_own_messages_and_help_name_its_own_options(command):
    """But where another command is meant, which the words then say."""
    tree = ast.parse((SOURCE / "cli" / f"{command}.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == command)
    own = options(command) | GENERAL
    # ``infer`` says with which options of ``reconstruct`` an encoder is trained.
    others = {"infer": {"--method", "--encoder"}, "demo": {"--help"}}.get(command, set())
    for text in (*texts(tree), ast.get_docstring(function) or ""):
        assert named_options(text) - own - others == set(), text


@pytest.fixture
def folder(tmp_path):
    with StackWriter(tmp_path / "a.mrcs", 2, 32, 0.0) as writer:
        writer.write(np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32))
    rows = "1@a.mrcs 10 20 30 1 -2\n2@a.mrcs 40 50 60 3 0\n"
    labels = "_rlnImageName\n_rlnAngleRot\n_rlnAngleTilt\n_rlnAnglePsi\n_rlnOriginX\n_rlnOriginY\n"
    (tmp_path / "p.star").write_text(f"data_\nloop_\n{labels}{rows}")
    return tmp_path


def fails(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_origins_in_px_without_a_pixel_size(folder, capsys):
    """The advice is --pixel-size, for each command that needs one; it once came from the reader before it."""
    path = folder / "p.star"
    with pytest.raises(InputError, match=r"origins are in pixels .*; give --pixel-size \(Å\)"):
        read_particles(path)
    for command in ("reconstruct", "infer", "evaluate"):
        assert "--pixel-size" in options(command)
    particles = read_particles(path, pixel_size=2.0)
    assert particles.pose is not None
    np.testing.assert_allclose(particles.pose.translation, [[-2, 4], [-6, 0]])
    assert particles.pixel_size == 2.0
    assert not any("unknown" in note for note in particles.notes)
    assert check_particles(particles, ReconstructConfig(pixel_size=2.0, no_ctf=True), fewest=1).pixel_size == 2.0
    words = ["evaluate", "--poses", path, "--true-poses", path]
    assert "p.star: its origins are in pixels and the pixel size is unknown; give --pixel-size" in fails(
        capsys, *words
    )
    main([str(word) for word in (*words, "--pixel-size", 2)])
    assert "Translation error" in capsys.readouterr().out


def test_poses_without_a_pixel_size(folder, capsys):
    path = folder / "p.star"
    path.write_text(path.read_text().replace("OriginX", "OriginXAngst").replace("OriginY", "OriginYAngst"))
    words = ["evaluate", "--poses", path, "--true-poses", path]
    assert "give the one to count in with --pixel-size" in fails(capsys, *words)
    main([str(word) for word in (*words, "--pixel-size", 2)])
    assert "Translation error" in capsys.readouterr().out
    assert "is not a positive length" in fails(capsys, *words, "--pixel-size", -1)


def test_maps_without_a_voxel_size(tmp_path, capsys):
    ball = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    for name in ("map", "true"):
        write_map(Map(ball, 2.0), tmp_path / f"{name}.mrc")
        raw = bytearray((tmp_path / f"{name}.mrc").read_bytes())
        raw[40:52] = bytes(12)
        (tmp_path / f"{name}.mrc").write_bytes(raw)
    words = ["evaluate", "--map", tmp_path / "map.mrc", "--true-map", tmp_path / "true.mrc"]
    assert "map.mrc: has no voxel size in its header; give it with --voxel-size" in fails(capsys, *words)
    words += ["--voxel-size", 2]
    assert "true.mrc: has no voxel size in its header; give it with --true-voxel-size" in fails(capsys, *words)
    main([str(word) for word in (*words, "--true-voxel-size", 2)])
    assert "Resolution against the truth" in capsys.readouterr().out


def test_known_poses_are_advised_only_where_there_are_any(folder):
    particles = read_particles(folder / "p.star", pixel_size=2.0)
    config = ReconstructConfig(no_ctf=True)
    with pytest.raises(InputError, match=r"too few .*, or --known-poses"):
        check_particles(particles, config)
    assert len(check_particles(particles, ReconstructConfig(no_ctf=True, known_poses=True))) == 2
    bare = read_particles(folder / "a.mrcs", pixel_size=2.0)
    with pytest.raises(InputError, match=r"too few .*; give at least \d+$"):
        check_particles(bare, config)
