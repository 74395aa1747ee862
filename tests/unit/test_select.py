"""The ``select`` command."""

import numpy as np
import pytest
from cs_files import BLOB, CTF, POSE, make_cs, make_stack
from star_blocks import read_blocks

from cryoai.cli.select import select
from cryoai.errors import InputError
from cryoai.io import read_particles, write_particles_star


@pytest.fixture
def project(tmp_path):
    """A run's folder of three particles from a cryoSPARC file: class 1, confidence 0.9; class 2, 0.4; none."""
    make_stack(tmp_path / "J12" / "extract" / "a.mrcs")
    particles = read_particles(make_cs(tmp_path / "J13" / "p.cs", BLOB + CTF + POSE))
    assert particles.pose is not None
    extra = {"rlnClassNumber": np.array([1, 2, 0]), "cryoaiConfidence": np.array([0.9, 0.4, 0.0])}
    (tmp_path / "out").mkdir()
    write_particles_star(tmp_path / "out/particles.star", particles, particles.pose, extra)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, [0, 1]), ({"class_": [1]}, [0]), ({"class_": [0, 2]}, [1, 2]), ({"min_confidence": 0.5}, [0])],
)
def test_rows_are_chosen_and_otherwise_as_they_are(project, capsys, options, rows):
    select(project / "out", output=project / "chosen.star", **options)
    before, after = (read_blocks(project / name) for name in ("out/particles.star", "chosen.star"))
    assert after["particles"].to_dict("records") == before["particles"].iloc[rows].to_dict("records")
    assert after["optics"].to_dict("records") == before["optics"].to_dict("records")
    assert f"Chose {len(rows)} of 3 particles" in capsys.readouterr().out
    # It is read like any other.
    assert len(read_particles(project / "chosen.star")) == len(rows)


def test_rows_of_the_cryosparc_file_with_all_its_columns(project):
    select(project / "out/particles.star", class_=[2], cs=project / "J13/p.cs", output=project / "J13/chosen.cs")
    before, after = (np.load(project / "J13" / name) for name in ("p.cs", "chosen.cs"))
    np.testing.assert_array_equal(after, before[1:2])
    assert read_particles(project / "J13/chosen.cs").pose is not None


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"class_": [3]}, "there is no class 3; choose from 0, 1, 2"),
        ({"min_confidence": 0.95}, "none of its 3 particles is chosen"),
        ({"min_confidence": 1.5}, "--min-confidence 1.5 is not a probability"),
        ({"output": "chosen.txt"}, "is not named .star"),
        ({"cs": "J13/p.cs"}, "is not named .cs"),
        ({"cs": "J13/none.cs", "output": "c.cs"}, "there is no such file"),
        ({"cs": "J13/p.cs", "output": "J13/p.cs"}, "already exists"),
    ],
)
def test_faults_are_named(project, options, fault):
    options = {name: project / value if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(InputError, match=fault):
        select(project / "out", **{"output": project / "chosen.star", **options})
    assert not (project / "chosen.star").exists()


def test_another_file_of_particles_is_refused(project):
    rows = np.load(project / "J13/p.cs")
    with open(project / "J13/more.cs", "wb") as stream:
        np.save(stream, np.concatenate((rows, rows)))
    with pytest.raises(InputError, match="has 6 particles, the run 3"):
        select(project / "out", cs=project / "J13/more.cs", output=project / "c.cs")
    particles = read_particles(project / "J13/p.cs")
    assert particles.pose is not None
    write_particles_star(project / "plain.star", particles, particles.pose)
    with pytest.raises(InputError, match="has no column rlnClassNumber"):
        select(project / "plain.star", output=project / "chosen.star")
