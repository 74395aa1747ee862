import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cryoai.geometry.fourier import (
    disk_to_images,
    full_radius,
    images_to_disk,
    make_fourier_disk,
    resample,
)
from cryoai.geometry.rotations import random_rotations, rotation_angle
from cryoai.geometry.so3_grid import make_so3_grid, so3_grid_spacing
from cryoai.particles.simulate import draw_ctf
from cryoai.physics.ctf import compute_ctf
from cryoai.physics.slicing import slice_volume, volume_from_map
from cryoai.physics.translation import compute_shift
from cryoai.poses.encoder import (
    PAPER_ENCODER,
    VggEncoder,
    VggSettings,
    blur_images,
    fold_batch_norm,
    make_blur_matrices,
    standardise,
)
from cryoai.poses.encoder_input import CtfTreatment, make_encoder_images, turn_by_pi, undo_turn
from cryoai.poses.grid_head import GridHead, GridHeadSettings
from cryoai.poses.heads import HEADS, AnchoredHead, AnchoredHeadSettings, S2S2Head, rotation_from_six
from cryoai.poses.pose_encoder import make_pose_encoder
from cryoai.poses.settings import EncoderSettings
from cryoai.tensors import ParticleBatch, PoseHypotheses

PIXEL_SIZE = 5.0
BOX_LENGTH = 160.0
FEATURES = 24
SMALL = VggSettings(box_size=16, widths=(4, 6, 8, 10))
KINDS = ("s2s2", "anchored", "so3_grid")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_images(count, box_size, seed=0):
    return torch.randn(count, box_size, box_size, generator=generator(seed))


def make_batch(box_size, radius=None, count=5):
    disk = make_fourier_disk(box_size, radius)
    ctf = compute_ctf(draw_ctf(count, np.random.default_rng(0)), disk, PIXEL_SIZE)
    return ParticleBatch(images_to_disk(noise_images(count, box_size), disk), ctf, disk, PIXEL_SIZE)


def make_settings(kind, hypotheses=50):
    return EncoderSettings(**SMALL.model_dump(), head=kind, hypotheses=hypotheses)


def assert_rotations(rotation, atol=2e-6):
    assert rotation.dtype == torch.float32
    identity = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity, atol=atol, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(rotation.shape[:-2]), atol=atol, rtol=0)


# The encoder's input


@pytest.mark.parametrize("box_size", [32, 33])
@pytest.mark.parametrize("target", [16, 17, 32, 33, 40, 41])
def test_encoder_images_are_fourier_crops(box_size, target):
    # A disk is cropped, so that the corners of the square that `resample` crops must be empty.
    batch = make_batch(box_size, full_radius(min(box_size, target)))
    images = make_encoder_images(batch, target, ctf="none")
    expected = resample(disk_to_images(batch.images, batch.disk), target, 2) * box_size / target
    assert images.shape == (5, target, target)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("box_size", "target"), [(32, 16), (33, 16), (32, 17), (64, 32)])
def test_encoder_images_leave_out_what_does_not_fit(box_size, target):
    batch = make_batch(box_size)
    images = make_encoder_images(batch, target, ctf="none")
    torch.testing.assert_close(images, make_encoder_images(batch.prefix(full_radius(target)), target, ctf="none"))
    disk = make_fourier_disk(target)
    assert torch.equal(disk.kx, batch.disk.kx[: len(disk)]) and torch.equal(disk.ky, batch.disk.ky[: len(disk)])
    torch.testing.assert_close(images_to_disk(images, disk), batch.images[:, : len(disk)], atol=1e-5, rtol=1e-5)


def test_encoder_images_of_a_small_disk_have_nothing_beyond_it():
    batch = make_batch(32, radius=5)
    disk = make_fourier_disk(16)
    coefficients = images_to_disk(make_encoder_images(batch, 16, ctf="none"), disk)
    n = len(batch.disk)
    torch.testing.assert_close(coefficients[:, :n], batch.images, atol=1e-5, rtol=1e-5)
    assert coefficients[:, n:].abs().max() < 1e-6


def test_encoder_images_treat_ctf_and_shells():
    batch = make_batch(32)
    disk = make_fourier_disk(16)
    weight = torch.rand(batch.disk.shell_count, generator=generator())
    n = len(disk)
    treatments: dict[CtfTreatment, torch.Tensor] = {"flip": batch.ctf.sign(), "multiply": batch.ctf}
    for treatment, factor in treatments.items():
        images = make_encoder_images(batch, 16, ctf=treatment, weight=weight)
        expected = (batch.images * factor * weight[batch.disk.shell])[:, :n]
        torch.testing.assert_close(images_to_disk(images, disk), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("box_size", [16, 17])
def test_turn_by_pi_conjugates(box_size):
    images = noise_images(4, box_size)
    disk = make_fourier_disk(box_size)
    torch.testing.assert_close(
        images_to_disk(turn_by_pi(images), disk), images_to_disk(images, disk).conj(), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(turn_by_pi(turn_by_pi(images)), images)
    centre = box_size // 2
    assert torch.equal(turn_by_pi(images)[:, centre, centre], images[:, centre, centre])
    assert torch.equal(turn_by_pi(images)[:, centre + 2, centre - 3], images[:, centre - 2, centre + 3])


@pytest.mark.parametrize("box_size", [16, 17])
def test_undo_turn_gives_the_pose_of_the_original(box_size):
    volume = volume_from_map(torch.randn(box_size, box_size, box_size, generator=generator()))
    disk = make_fourier_disk(box_size)

    def form(poses):
        slices = slice_volume(volume, poses.rotation[:, 0], disk)
        return disk_to_images(slices * compute_shift(poses.translation[:, 0], disk, PIXEL_SIZE), disk)

    translation = 8 * torch.randn(6, 1, 2, generator=generator(1))
    poses = PoseHypotheses(random_rotations(6, generator(2))[:, None], translation, torch.randn(6, 1))
    undone = undo_turn(poses)
    torch.testing.assert_close(turn_by_pi(form(undone)), form(poses), atol=1e-4, rtol=1e-4)
    assert torch.equal(undone.log_weight, poses.log_weight)
    assert_rotations(undone.rotation)


# The backbone


def test_blur_is_a_reflected_gaussian_convolution():
    images = noise_images(3, 16)
    sigmas = (0.1, 0.7, 3.2)
    axis = torch.arange(-5, 6)
    kernels = torch.stack([torch.exp(-(axis**2 + axis[:, None] ** 2) / (2 * s**2)) for s in sigmas])
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    expected = F.conv2d(F.pad(images[:, None], (5, 5, 5, 5), mode="reflect"), kernels[:, None])
    torch.testing.assert_close(blur_images(images, make_blur_matrices(16, sigmas)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_standardise(scale):
    images = standardise(scale * (noise_images(4, 16) + 0.5))
    torch.testing.assert_close(images.mean((1, 2)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((1, 2), correction=0), torch.ones(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings", [SMALL, VggSettings(), SMALL.model_copy(update={"box_size": 33, "final_pool": True})]
)
def test_encoder_features(settings):
    encoder = VggEncoder(settings)
    images = noise_images(3, settings.box_size)
    features = encoder(images)
    assert features.shape == (3, settings.features)
    torch.testing.assert_close(encoder(images * 1e-6), features, atol=1e-3, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(images).float()
    assert F.cosine_similarity(rough, features).min() > 0.99


def test_paper_preset():
    assert PAPER_ENCODER.features == 1024
    convolutions = [m for m in VggEncoder(PAPER_ENCODER).backbone if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128] + [256] * 7
    assert PAPER_ENCODER.filter_sigmas == pytest.approx((0.1, 0.1**0.5, 1.0, 10**0.5, 10.0))


@pytest.mark.parametrize("value", [0.0, 1.0, -1e-20, 1e20])
def test_constant_images_give_finite_features(value):
    images = noise_images(3, 16)
    images[1] = value
    with torch.autocast("cpu", torch.bfloat16):
        features = VggEncoder(SMALL)(images)
    features.sum().backward()
    assert features.isfinite().all()


def test_too_many_stages_are_refused():
    for settings in (VggSettings, EncoderSettings):
        with pytest.raises(ValueError, match="box_size 12 is too small for 4 stages"):
            settings(box_size=12, widths=(4, 6, 8, 10))


# The heads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_heads_give_valid_poses(kind, autocast):
    hypotheses = {"s2s2": 1, "anchored": 50, "so3_grid": 7}[kind]
    model = make_pose_encoder(make_settings(kind), BOX_LENGTH, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        poses = model.propose(noise_images(4, 16), 7)
    assert_rotations(poses.rotation)
    assert poses.rotation.shape == (4, hypotheses, 3, 3)
    assert poses.translation.shape == (4, hypotheses, 2)
    assert poses.log_weight.shape == (4, hypotheses)
    assert poses.translation.dtype == poses.log_weight.dtype == torch.float32
    assert poses.translation.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_first_translations_are_zero(kind):
    head = HEADS.make(kind, FEATURES, BOX_LENGTH, make_settings(kind, 40).head_settings())
    assert not head(torch.randn(3, FEATURES)).translation.any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(kind):
    model = make_pose_encoder(make_settings(kind), BOX_LENGTH, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images, target = noise_images(8, 16), random_rotations(8, generator(1))
    # Layers that start at zero let gradients through from the second step on.
    for _ in range(2):
        optimizer.zero_grad()
        poses = model.propose(images, 7)
        loss = (poses.rotation - target[:, None]).square().sum() + (poses.translation - 5).square().sum()
        (loss - torch.log_softmax(poses.log_weight, 1)[:, 0].sum()).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_rotation_from_six_is_gram_schmidt():
    rotation = random_rotations(10, generator())
    a, b = 3 * rotation[:, :, 0], 0.2 * rotation[:, :, 1] + 0.7 * rotation[:, :, 0]
    torch.testing.assert_close(rotation_from_six(torch.cat((a, b), 1)), rotation, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "six",
    [
        (0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 1, 0),
        (0, 0, 0, 1, 0, 0),
        (1, 2, 3, 0, 0, 0),
        (1, 2, 3, -2, -4, -6),
        (1, 2, 3, 1, 2, 3.01),
        (1e-20, 0, 0, 0, 1e-20, 0),
        (1e15, 0, 0, 0, 1e-15, 0),
    ],
)
def test_degenerate_vectors_give_rotations_and_finite_gradients(six):
    six = torch.tensor(six, dtype=torch.float32, requires_grad=True)
    rotation = rotation_from_six(six)
    assert_rotations(rotation)
    (rotation * torch.randn(3, 3, generator=generator())).sum().backward()
    assert six.grad.isfinite().all()


def test_s2s2_head_bears_zero_features():
    head = S2S2Head(FEATURES, BOX_LENGTH, S2S2Head.Settings())
    features = torch.zeros(2, FEATURES, requires_grad=True)
    poses = head(features)
    assert_rotations(poses.rotation)
    (poses.rotation.sum() + poses.translation.sum()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
    assert features.grad.isfinite().all()


def test_anchored_head_starts_at_its_anchors():
    head = AnchoredHead(FEATURES, BOX_LENGTH, AnchoredHeadSettings(hypotheses=30))
    poses = head(torch.randn(5, FEATURES, generator=generator()))
    distance = rotation_angle(poses.rotation, make_so3_grid(30).expand(5, -1, -1, -1))
    assert distance.max() < 0.2 * so3_grid_spacing(30)


def test_grid_head_keeps_the_likeliest_in_order():
    head = GridHead(FEATURES, BOX_LENGTH, GridHeadSettings(hypotheses=100))
    features = torch.randn(4, FEATURES, generator=generator())
    poses = head.propose(features, 10)
    best, index = head.logits(features).sort(dim=1, descending=True)
    # Before training the offsets are zero.
    torch.testing.assert_close(poses.rotation, make_so3_grid(100)[index[:, :10]], atol=1e-6, rtol=0)
    torch.testing.assert_close(poses.log_weight, (best - best.logsumexp(1, keepdim=True))[:, :10])
    torch.testing.assert_close(head.propose(features, 100).log_weight.exp().sum(1), torch.ones(4))


def test_grid_head_offsets_are_bounded_and_left_multiplied():
    head = GridHead(FEATURES, BOX_LENGTH, GridHeadSettings(hypotheses=100))
    last = head.offset_mlp[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.normal_(last.weight, generator=generator())
    features = torch.randn(4, FEATURES, generator=generator())
    index = torch.randint(0, 100, (4, 6), generator=generator())
    assert head.offset(1e3 * features, index).abs().max().item() == pytest.approx(so3_grid_spacing(100))
    # Neither the image nor the anchor alone decides.
    offset = head.offset(features, index).detach()
    assert head.offset(features, index[:1].expand(4, -1))[:, 0].unique(dim=0).shape == (4, 3)
    assert offset[0].unique(dim=0).shape == (6, 3)
    cross = torch.linalg.cross(offset[..., None, :].expand(-1, -1, 3, -1), torch.eye(3).expand(4, 6, 3, 3)).mT
    expected = torch.linalg.matrix_exp(cross) @ make_so3_grid(100)[index]
    torch.testing.assert_close(head.rotate(offset, index), expected, atol=1e-5, rtol=1e-5)


# All together


@pytest.mark.parametrize("kind", KINDS)
def test_rebuilt_from_settings_and_weights(kind):
    model = make_pose_encoder(make_settings(kind), BOX_LENGTH, seed=0)
    images = noise_images(6, 16)
    model(images)  # moves BatchNorm's running averages
    settings = EncoderSettings(**json.loads(json.dumps(model.settings.model_dump(mode="json"))))
    assert settings == model.settings
    rebuilt = make_pose_encoder(settings, BOX_LENGTH, seed=1)
    rebuilt.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, found = (m.eval()(images) for m in (model, rebuilt))
    assert torch.equal(expected.rotation, found.rotation)
    assert torch.equal(expected.log_weight, found.log_weight)


@pytest.mark.parametrize("final_pool", [False, True])
def test_folded_copy_agrees_with_evaluation(final_pool):
    encoder = VggEncoder(VggSettings(box_size=16, widths=(4, 6, 8), final_pool=final_pool))
    for seed in range(3):
        encoder(noise_images(16, 16, seed))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator())
    folded = fold_batch_norm(encoder)
    assert encoder.training and not folded.training
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in encoder.modules())
    images = noise_images(4, 16, 9)
    torch.testing.assert_close(folded(images), encoder.eval()(images), atol=1e-4, rtol=1e-4)


def test_first_weights_depend_on_the_seed_alone():
    settings = make_settings("so3_grid")
    state = torch.random.get_rng_state()
    first, again, other = (make_pose_encoder(settings, BOX_LENGTH, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    name = "encoder.backbone.0.weight"
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
