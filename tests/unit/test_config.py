"""The configuration: shipped files, misspelt names, values out of range, options that exclude each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cryoai import InputError, ReconstructConfig
from cryoai.poses.encoder import PAPER_ENCODER, VggSettings
from cryoai.poses.pose_encoder import make_pose_encoder
from cryoai.poses.settings import EncoderSettings
from cryoai.run.config import load_config
from cryoai.training.settings import HybridSettings, TrainingSettings

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
GROUPS = ("bootstrap", "encoder", "amortize", "hybrid", "refine")


def test_there_are_shipped_configurations() -> None:
    assert {path.name for path in SHIPPED} >= {"paper.yaml", "paper-small.yaml"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_configuration_can_be_run(path: Path) -> None:
    config = load_config(path, {})
    assert config.box_size is not None
    make_pose_encoder(config.encoder, 500.0, seed=0)
    config.amortize.make_volume(config.box_size, scale=1.0, seed=0)
    # What a run writes down can be read back.
    again = yaml.safe_load(yaml.safe_dump(config.model_dump()))
    assert ReconstructConfig(**again) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_comment_beside_each_configuration_says_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")


def test_the_paper_is_as_published() -> None:
    config = load_config(next(path for path in SHIPPED if path.name == "paper.yaml"), {})
    settings = config.encoder.backbone_settings()
    assert isinstance(settings, VggSettings)
    assert settings.widths == PAPER_ENCODER.widths and settings.box_size == PAPER_ENCODER.box_size
    assert settings.features == PAPER_ENCODER.features
    assert settings.filter_sigmas == pytest.approx(PAPER_ENCODER.filter_sigmas, rel=1e-3)
    assert config.encoder.head == "s2s2" and config.amortize.symmetrized
    assert config.amortize.volume == "fourier_net" and config.amortize.volume_width == 256
    # Nothing that the paper does not have: whitening, marching, sampling, refinement in halves.
    assert not config.amortize.whiten and config.amortize.march_steps == config.amortize.sampling_steps == 0
    assert config.refine.max_rounds == 0


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("bootstrap: {stepps: 10}", "steps"),
        ("encoder: {hypothesis: 10}", "hypotheses"),
        ("encoder: {filter_sigma: [1.0]}", "filter_sigmas"),
        ("amortize: {symetrized: true}", "symmetrized"),
        ("amortize: {encoder_learning_rat: 1.0}", "encoder_learning_rate"),
        ("hybrid: {encodr: always}", "encoder"),
        ("encoder: {keeps: 10}", "keep"),
        ("amortize: {max_shift: 0.1}", "max_shift_box_lengths"),
        ("amortize: {mask_radius: 0.4}", "mask_radius_box_lengths"),
        ("refine: {max_round: 1}", "max_rounds"),
        ("amortise: {steps: 10}", "amortize"),
        ("hybryd: {}", "hybrid"),
        ("methd: search", "method"),
    ],
)
def test_misspelt_names_get_a_suggestion(tmp_path: Path, text: str, suggestion: str) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text + "\n")
    with pytest.raises(InputError, match=f"options.yaml: there is no option .*did you mean '{suggestion}'"):
        load_config(file, {})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("method: amortised", "method"),
        ("encoder: {head: resnet}", "encoder.head"),
        ("encoder: {widths: [0]}", "encoder.widths"),
        ("encoder: {widths: []}", "encoder.widths"),
        ("encoder: {backbone: resnet}", "encoder.backbone"),
        ("encoder: {precision: fp8}", "encoder.precision"),
        ("amortize: {steps: 0}", "amortize.steps"),
        ("amortize: {batch_size: 1}", "amortize.batch_size"),
        ("amortize: {mask_radius_box_lengths: 0.7}", "amortize.mask_radius_box_lengths"),
        ("amortize: {own_proposals_share: 1.5}", "amortize.own_proposals_share"),
        ("amortize: {volume: gaussians}", "amortize.volume"),
        ("hybrid: {encoder: maybe}", "hybrid.encoder"),
        ("encoder: {keep: 0}", "encoder.keep"),
        ("refine: {max_rounds: -1}", "refine.max_rounds"),
    ],
)
def test_values_out_of_range_are_named(tmp_path: Path, text: str, name: str) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text + "\n")
    with pytest.raises(InputError, match=f"options.yaml: option '{name}"):
        load_config(file, {})


def test_options_of_a_group_override_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("hybrid: {encoder: never, batch_size: 7}\n")
    config = load_config(file, {"hybrid.encoder": "always", "seed": 3})
    assert (config.hybrid.encoder, config.hybrid.batch_size, config.seed) == ("always", 7, 3)
    file.write_text("hybrid:\n")
    assert load_config(file, {"hybrid.encoder": "always"}).hybrid.encoder == "always"


def test_every_group_alone_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("".join(f"{group}: {{}}\n" for group in GROUPS))
    assert load_config(file, {}) == ReconstructConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine.max_rounds": 0}, "max_rounds: 0 is for --method amortized"),
        ({"method": "search", "refine.max_rounds": 0}, "max_rounds"),
        ({"encoder.head": "s2s2"}, "so3_grid head, not s2s2"),
        ({"encoder.widths": [8] * 6}, "too small for 6 stages"),
        ({"encoder.widths": [8] * 5, "encoder.final_pool": True}, "too small for 5 stages"),
        ({"amortize.symmetrized": True}, "symmetrized is for the heads s2s2 and anchored: so3_grid scores all"),
        ({"amortize.mask_radius_box_lengths": 0.4}, "^amortize: mask_radius_box_lengths needs domain: real$"),
        ({"amortize.first_radius": 8, "amortize.last_radius": 6}, "first_radius 8 is larger than last_radius 6"),
        ({"amortize.volume_options": {"paddin": 1}}, "fourier_net has no option 'paddin'; it has width"),
        ({"amortize.volume": "real_grid", "amortize.volume_options": {"padding": 1}}, "it has none"),
        (
            {"amortize.volume": "fourier_grid", "amortize.volume_options": {"padding": 3}},
            "'padding'.*be 1 or 2",
        ),
        ({"encoder.head_options": {"hypothesis": 3}}, "so3_grid has no option 'hypothesis'; it has hypotheses"),
        ({"encoder.backbone_options": {"depth": 3}}, "vgg has no option 'depth'"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(None, options)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "amortized", "refine.max_rounds": 0},
        {"known_poses": True, "refine.max_rounds": 0},
        {"method": "amortized", "encoder.head": "s2s2", "amortize.symmetrized": True},
        {"encoder.head": "s2s2", "hybrid.encoder": "never"},
        {"encoder.widths": [8] * 5},
        {"amortize.domain": "real", "amortize.mask_radius_box_lengths": 0.4},
        {"amortize.first_radius": 6, "amortize.last_radius": 6},
        {"amortize.volume": "fourier_grid", "amortize.volume_options": {"padding": 1}},
    ],
)
def test_options_that_go_together_are_not_refused(options: dict) -> None:
    load_config(None, options)


def test_settings_made_in_python_are_checked_too() -> None:
    with pytest.raises(ValueError, match="first_radius 8 is larger than last_radius 6"):
        TrainingSettings(first_radius=8, last_radius=6)
    with pytest.raises(ValueError, match="so3_grid head, not s2s2"):
        ReconstructConfig(encoder=EncoderSettings(head="s2s2"))


@pytest.mark.parametrize(("volume", "rate"), [("fourier_net", 1e-3), ("fourier_grid", 0.1), ("real_grid", 0.1)])
def test_a_volume_learns_at_its_own_rate_unless_told_another(volume: str, rate: float) -> None:
    settings = TrainingSettings(volume=volume)
    assert settings.volume_learning_rate is None
    assert settings.make_volume(16, scale=1.0, seed=0).learning_rate == rate


def test_radii_end_where_the_box_does() -> None:
    settings = TrainingSettings(first_radius=4, last_radius=16)
    assert [settings.within(radius).last_radius for radius in (20, 16, 9.5, 3)] == [16, 16, 9.5, 3]
    assert [settings.within(radius).first_radius for radius in (20, 9.5, 3)] == [4, 4, 3]


def test_the_encoder_of_the_hybrid_method_sees_no_more_than_the_map_holds() -> None:
    settings = HybridSettings(simulated_steps=7, real_steps=3, learning_rate=0.01).training(8.5, 0.2)
    assert {settings.first_radius, settings.last_radius, settings.search_radius} == {8.5}
    assert (settings.steps, settings.encoder_learning_rate, settings.max_shift_box_lengths) == (10, 0.01, 0.2)
    # Poses are known from the first step on.
    assert settings.encoder_start == settings.sampling_steps == settings.march_steps == 0
