import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import escape
from PIL import Image

from cryoai.ab_initio.agreement import AbInitioResult
from cryoai.ab_initio.bootstrap import BootstrapResult
from cryoai.ab_initio.classify import Classification
from cryoai.geometry.fourier import fft3, ifft3
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.io import read_map
from cryoai.metrics.fsc import phase_randomised_fsc
from cryoai.particles.phantom import make_phantom
from cryoai.physics.slicing import FourierVolume, make_accumulator
from cryoai.reconstruction.class_output import write_class_outputs
from cryoai.reconstruction.result import ClassesResult, ReconstructionResult
from cryoai.refinement.confidence import FitSummary
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.rounds import RoundSummary
from cryoai.refinement.search_again import SearchSummary
from cryoai.refinement.state import RefinementState
from cryoai.report import write_classes_report, write_picture, write_report
from cryoai.report.figures import make_surface_figure, viewing_density
from cryoai.report.html import duration, starts_sentence
from cryoai.report.picture import render_map
from cryoai.report.surface import choose_level, make_surfaces
from cryoai.run.config import ReconstructConfig
from cryoai.types import Map, ParticleSet, SourceTable


def random_rotations(n, generator):
    q, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator))
    q = q * torch.diagonal(r, dim1=1, dim2=2).sign()[:, None]
    return q * torch.linalg.det(q)[:, None, None]


def fake_result(folder, n=300, box=32, voxel_size=4.0, noise=1.0):
    """A result as the pipeline would give, from a phantom and made-up numbers."""
    g = torch.Generator().manual_seed(0)
    density = make_phantom(box, voxel_size).density
    truth = torch.from_numpy(density)
    axis = torch.arange(box) - box // 2
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + torch.arange(box // 2 + 1) ** 2).sqrt()
    strength = noise * torch.exp(6 * (radius / box - 0.5)).clamp(max=1)

    def with_noise():
        return truth + ifft3(fft3(torch.randn(truth.shape, generator=g) * 0.05) * strength, box)

    half1, half2 = with_noise(), with_noise()
    mask = make_soft_sphere(box, 0.42 * box, 0.12 * box)
    fsc = phase_randomised_fsc(half1, half2, mask, g, voxel_size=voxel_size)
    sums = make_accumulator(box, 4.0)
    half = np.arange(n) % 2
    half[:3] = -1
    state = RefinementState(
        random_rotations(n, g), 8 * torch.randn(n, 2, generator=g), half, torch.ones(box // 2),
        torch.where(torch.from_numpy(half < 0), 0.0, torch.rand(n, generator=g) ** 0.2),
        0.02 * torch.rand(n, generator=g) + 0.01, torch.rand(n, generator=g) + 0.5,
        torch.ones(n), np.zeros(n, bool), torch.ones(n),
    )  # fmt: skip
    best = BootstrapResult((FourierVolume(torch.zeros(9, 9, 5, 2), box),), (1.0,), torch.ones(5), 10.0, 1, 4.0)
    source = SourceTable("relion", Path("input <b>&\"'.star"), pd.DataFrame({"rlnImageName": ["1@a.mrcs"] * n}))
    particles = ParticleSet(
        (Path("a.mrcs"),),
        np.zeros(n, int),
        np.arange(n),
        box,
        voxel_size,
        None,
        None,
        source,
        notes=("a note <i>",),
    )
    rounds = (
        RoundSummary(1, 9.5, 11.0, 6.2, SearchSummary(40, 25, 5, 1), mates=2, mates_moved=17),
        RoundSummary(2, 12.4, 14.0, 0.21),
    )
    return ReconstructionResult(
        folder, ReconstructConfig(), particles, state,
        HalfMaps((sums, sums), (half1, half2), mask, fsc.masked, 15.0),
        FitSummary(0.1, 0.97, 80.0, -7.8, 0.9, 0.97),
        density, voxel_size, fsc, AbInitioResult(best, 1, (10.0, 9.5, 3.25), (1.0, 0.91, 0.3)), 10.0, rounds,
        ("3 of 300 images are <constant>",), {"reading": 2.0, "bootstrap": 25.0, "refinement": 70.5},
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return fake_result(tmp_path_factory.mktemp("runs") / "run <script>alert(1)<")


@pytest.fixture(scope="module")
def html(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(result, folder / "report.html")
    assert [p.name for p in folder.iterdir()] == ["report.html"]
    assert (folder / "report.html").stat().st_size < 8e6
    return (folder / "report.html").read_text(encoding="utf-8")


def own_markup(html):
    """The page without the scripts, whose libraries mention addresses they never load here."""
    return re.sub(r"<script.*?</script>", "", html, flags=re.S)


def test_report_loads_nothing(html):
    assert "script-src 'unsafe-inline'" in html and "default-src 'none'" in html
    for script in re.findall(r"<script([^>]*)>", html):
        assert "src=" not in script
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", own_markup(html))
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in own_markup(html) and "@import" not in own_markup(html)


def test_report_says_what_matters(html, result):
    page = own_markup(html)
    assert 0 < result.resolution < 60
    assert f"{result.resolution:.2f} <small>Å" in page
    assert "297" in page and "of 300" in page
    assert "The hand is not known" in page
    assert "2 of 3 independent starts found the same map" in page
    assert f"{32 * 4 / 12.4:.2f}" in page  # the last round's resolution
    assert "max_rounds: 8" in page
    assert f"Views: SCF* {result.views.scf_star:.2f}" in page and f"evenness {result.views.evenness:.2f}" in page
    for name in ("surface", "fsc", "directions", "confidence", "rotation-std", "translation-std", "translation"):
        assert f'id="figure-{name}"' in page


def test_the_verdict_is_at_the_top_in_words(html, result):
    page = own_markup(html)
    assert f'class="box verdict {result.verdict.call.replace(" ", "-")}"' in page
    assert page.index("Verdict: ") < page.index('class="headline"')
    for reason in result.verdict.reasons:
        assert str(escape(reason[1:])) in page


def test_report_escapes_what_comes_from_the_user(html):
    page = own_markup(html)
    assert "3 of 300 images are &lt;constant&gt;" in page
    assert "run &lt;script&gt;alert(1)&lt;" in page and "<script>alert(1)" not in html
    assert "input &lt;b&gt;&amp;" in page
    assert "A note &lt;i&gt;." in page


def test_report_with_known_poses(result, tmp_path):
    known = replace(
        result, ab_initio=None, rounds=(), warnings=(), config=ReconstructConfig(known_poses=True),
        state=replace(
            result.state,
            rotation_std=torch.full_like(result.state.rotation_std, torch.nan),
            translation_std=torch.full_like(result.state.translation_std, torch.nan),
        ),
    )  # fmt: skip
    write_report(known, tmp_path / "report.html")
    page = own_markup((tmp_path / "report.html").read_text(encoding="utf-8"))
    for absent in (
        "Independent starts",
        "Refinement</h3>",
        'id="figure-confidence"',
        "rotation-std",
        "The hand is not",
    ):
        assert absent not in page
    assert 'class="box warning"' not in page
    assert 'id="figure-directions"' in page


def test_report_of_an_empty_map(result, tmp_path):
    write_report(replace(result, density=np.zeros_like(result.density)), tmp_path / "report.html")
    assert 'id="figure-surface"' not in own_markup((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_picture_has_the_wanted_size_and_shows_something(result, tmp_path):
    write_picture(result, tmp_path / "map.png", (301, 120))
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(float)
    assert pixels.shape == (120, 301, 3)
    covered = (pixels.min(2) < 250).mean(0)
    for view in np.array_split(covered, 3):
        assert 0.05 < view.mean() < 0.95
    assert pixels.std() > 10


def test_picture_shows_the_hand_and_the_directions_of_the_map(tmp_path):
    # A blob at +x and one, larger, at +y: seen from +z, x points right and y up.
    axis = np.arange(32) - 16.0
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    density = np.exp(-((x - 8) ** 2 + y**2 + z**2) / 8) + np.exp(-(x**2 + (y - 8) ** 2 + z**2) / 18)
    render_map(
        density.astype(np.float32), 1.0, tmp_path / "blobs.png", (100, 100), views=((0.0, 0.0, 0.0),), level=0.5
    )
    shown = np.asarray(Image.open(tmp_path / "blobs.png").convert("L"))[:88] < 245
    rows, columns = np.nonzero(shown)
    right = columns > columns.max() - 8
    assert rows[right].mean() > rows[~right].mean()
    top = rows < rows.min() + 8
    assert columns[top].mean() < columns[~top].mean()


def test_mesh_of_a_ball_is_closed_and_turns_outwards():
    axis = np.arange(32) - 16.0
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    ball = np.exp(-((x - 3) ** 2 + y**2 + z**2) / 50).astype(np.float32)
    (surface,) = make_surfaces(ball, (1.0,), 100_000)
    corners = surface.vertices.astype(float)[surface.faces]
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    radius = np.sqrt(-50 * np.log(choose_level(ball))) * 30_000 / (16 + 16 / surface.box_size)
    assert abs(volume / (4 / 3 * np.pi * radius**3) - 1) < 0.1
    assert surface.vertices[:, 0].mean() > 5 * abs(surface.vertices[:, 1:].mean(0)).max()


def test_surface_figure_of_noise_stays_small():
    noise = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    figure = make_surface_figure(noise)
    assert figure is None or len(str(figure.to_json())) < 3e6


def test_viewing_density_is_one_for_uniform_directions_and_finds_the_pole():
    g = torch.Generator().manual_seed(1)
    uniform = viewing_density(random_rotations(50_000, g).numpy())
    assert abs(uniform.mean() - 1) < 1e-6 and uniform.std() < 0.4
    pole = viewing_density(np.tile(np.eye(3, dtype=np.float32), (100, 1, 1)))
    assert pole[-1].sum() == pole.sum() > 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (59.2, "59 s"), (119.8, "2 min 00 s"), (7265, "2 h 01 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_disagreeing_starts_are_not_hidden(result):
    lone = replace(result.ab_initio, agreements=(1.0, 0.2, 0.3))
    assert "do not trust" in starts_sentence(lone)
    assert "single start" in starts_sentence(replace(lone, agreements=(1.0,), likelihoods=(1.0,)))
    assert "do not trust" in starts_sentence(replace(lone, agreements=(1.0, 0.69, 0.71)))
    assert "All 3" in starts_sentence(replace(lone, agreements=(1.0, 0.9, 0.8)))


def test_classes_side_by_side_and_those_too_small(tmp_path):
    one = replace(fake_result(tmp_path / "class1"), warnings=("told of all",))
    n = len(one.particles)
    probability = torch.zeros(n, 4)
    probability[torch.arange(n), torch.tensor([1, 2, 0, 1, 3]).repeat(n // 5)] = 1
    small = Map(one.density, one.voxel_size)
    both = (one, replace(one, folder=tmp_path / "class2"))
    result = ClassesResult(tmp_path, both, Classification.of_probability(probability), (small,))
    write_class_outputs(result)
    write_classes_report(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Class 3 has 60 particles, too few to be refined" in page
    assert page.count("Told of all.") == 1 and 'href="class2/report.html"' in page and "class3/report" not in page
    assert "60 images show none of them" in page
    np.testing.assert_array_equal(read_map(tmp_path / "class3/map.mrc").density, one.density)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["class"], line.get("too_small", False)) for line in lines] == [(1, False), (2, False), (3, True)]
    assert lines[2]["particles_used"] == 60
