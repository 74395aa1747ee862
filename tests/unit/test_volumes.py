import pytest
import torch
from torch.func import functional_call

from cryoai.geometry.fourier import full_radius, images_to_disk, make_fourier_disk
from cryoai.geometry.rotations import random_rotations
from cryoai.geometry.shells import half_space_radius
from cryoai.physics.slicing import grid_shape, slice_volume, volume_from_map
from cryoai.volumes import (
    AbstractVolume,
    FourierGrid,
    FourierNet,
    RealGrid,
    count_parameters,
    make_volume,
    width_for_budget,
)
from cryoai.volumes.grid import AbstractGridVolume

NETWORKS = ("fourier_net", "siren", "positional_mlp")
GRIDS = ("fourier_grid", "real_grid")
WIDTH = 32
RADIUS = 5.0
# Adam's step for each; FourierNet diverges at those that suit the others (ω₀ = 40 and an exponential).
LEARNING_RATE = {"fourier_net": 3e-4, "siren": 1e-3, "positional_mlp": 3e-3}

IDENTITY = torch.eye(3)
# The image plane becomes the plane x = 0: x -> y, y -> z, z -> x.
ONTO_THE_SEAM = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
HALF_TURN = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))


@pytest.fixture(params=NETWORKS + GRIDS)
def kind(request):
    return request.param


@pytest.fixture(params=[16, 15])
def box(request):
    return request.param


@pytest.fixture(scope="module", params=NETWORKS)
def fitted(request):
    return fit_network(request.param)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind, box=16, seed=0, width=WIDTH, scale=1.0):
    return make_volume(kind, box, RADIUS, width=width, scale=scale, seed=seed)


def generic(kind, box=16):
    """A float64 volume with parameters of order one, and none of the initial ones' symmetry."""
    volume = make(kind, box).double()
    if kind in GRIDS:
        for parameter in volume.parameters():
            parameter.data.normal_(generator=generator(1))
    return volume


def make_blobs(box):
    """Three Gaussian balls, well inside the box."""
    axis = torch.arange(box, dtype=torch.float32) - box // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    centres = ((2.0, 1.0, -1.0), (-1.0, 2.0, 1.0), (0.0, -2.0, 1.0))
    squared = torch.stack([(x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 for a, b, c in centres])
    return torch.exp(-squared / (2 * 1.4**2)).sum(0)


def fit_network(kind, box=16, steps=200):
    """A tiny network trained on slices of the blobs."""
    truth, disk = volume_from_map(make_blobs(box)), make_fourier_disk(box, RADIUS)
    volume, draw = make(kind, box, width=64), generator(3)
    volume.scale.fill_(slice_volume(truth, random_rotations(16, draw), disk).abs().square().mean().sqrt())
    optimizer = torch.optim.Adam(volume.parameters(), LEARNING_RATE[kind])
    for _ in range(steps):
        rotation = random_rotations(8, draw)
        residual = (volume.slice(rotation, disk) - slice_volume(truth, rotation, disk)) / volume.scale
        loss = residual.abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return volume


def relative_error(value, truth):
    return float(((value - truth).norm() / truth.norm()).detach())


# Hermitian symmetry


@pytest.mark.parametrize("seam", [False, True])
def test_the_image_turned_by_pi_is_the_conjugate(kind, box, seam):
    volume, disk = generic(kind, box), make_fourier_disk(box, RADIUS)
    rotation = ONTO_THE_SEAM[None] if seam else random_rotations(5, generator())
    rotation = rotation.double()
    here, turned = volume.slice(rotation, disk), volume.slice(rotation @ HALF_TURN.double(), disk)
    assert here.imag.abs().max() > 1e-3
    torch.testing.assert_close(turned, here.conj(), rtol=0, atol=1e-12 * float(here.detach().abs().max()))


def test_the_padded_grid_is_hermitian(kind, box):
    values = generic(kind, box).to_fourier_volume(RADIUS).values
    plane = torch.view_as_complex(values[:, :, 0].contiguous())
    torch.testing.assert_close(plane, plane.flip(0, 1).conj(), rtol=0, atol=1e-10)
    assert plane[plane.shape[0] // 2, plane.shape[1] // 2].imag.abs() < 1e-10


# Derivatives


def test_gradient_in_the_rotation(kind, box):
    volume, disk = generic(kind, box), make_fourier_disk(box, 3.0)
    rotation = random_rotations(2, generator(4)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: torch.view_as_real(volume.slice(r, disk)), (rotation,))


def test_gradient_in_the_parameters(kind, box):
    volume, disk = generic(kind, box), make_fourier_disk(box, 3.0)
    rotation = random_rotations(2, generator(4)).double()
    names = [name for name, _ in volume.named_parameters()]

    def slices(*parameters):
        module = Sliced(volume, disk)
        return functional_call(
            module, {f"volume.{n}": p for n, p in zip(names, parameters, strict=True)}, (rotation,)
        )

    assert torch.autograd.gradcheck(slices, tuple(volume.parameters()), fast_mode=True)


class Sliced(torch.nn.Module):
    """`functional_call` replaces parameters for the time of a forward, which volumes do not have."""

    def __init__(self, volume, disk):
        super().__init__()
        self.volume, self.disk = volume, disk

    def forward(self, rotation):
        return torch.view_as_real(self.volume.slice(rotation, self.disk))


def test_every_parameter_learns(kind):
    volume = make(kind)
    volume.slice(random_rotations(3, generator()), make_fourier_disk(16, RADIUS)).abs().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in volume.parameters())


# Slices, maps and padded grids agree


@pytest.mark.parametrize("rotation", [IDENTITY, ONTO_THE_SEAM, HALF_TURN], ids=["identity", "seam", "half turn"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_slice_along_the_axes_is_the_projection_of_the_map(kind, box, rotation):
    volume, disk = make(kind, box, scale=3.0), make_fourier_disk(box, RADIUS)
    # The map in image coordinates: axis j of the image is axis `rotation[:, j]` of the volume, up to its sign.
    density = volume.to_map().permute(2, 1, 0)
    if torch.equal(rotation, HALF_TURN):
        projection = images_to_disk(density.sum(2).T, disk).conj()
    else:
        projection = images_to_disk(density.permute(*rotation.argmax(0).tolist()).sum(2).T, disk)
    torch.testing.assert_close(volume.slice(rotation[None], disk)[0], projection, rtol=1e-4, atol=1e-5)


def test_grids_hold_the_map_they_are_given(box):
    blobs, disk = make_blobs(box), make_fourier_disk(box, RADIUS)
    rotation = random_rotations(4, generator())
    truth = slice_volume(volume_from_map(blobs), rotation, disk)
    for kind in GRIDS:
        volume = make_volume(kind, box, scale=2.0)
        assert isinstance(volume, FourierGrid | RealGrid)
        volume.set_map(blobs)
        torch.testing.assert_close(volume.slice(rotation, disk), truth, rtol=1e-4, atol=1e-4)
        # The grid reaches all shells but not the corners of the box's transform.
        torch.testing.assert_close(volume.to_map(), blobs, rtol=0, atol=2e-3)


def test_the_unpadded_grid_approximates_the_map(box):
    blobs, disk = make_blobs(box), make_fourier_disk(box, RADIUS)
    rotation = random_rotations(4, generator())
    volume = make_volume("fourier_grid", box, padding=1)
    assert isinstance(volume, FourierGrid)
    volume.set_map(blobs)
    truth = slice_volume(volume_from_map(blobs), rotation, disk)
    assert relative_error(volume.slice(rotation, disk), truth) < 0.15
    assert relative_error(slice_volume(volume.to_fourier_volume(RADIUS, 2), rotation, disk), truth) < 0.02


def test_a_real_grid_is_its_own_map(box):
    volume, disk = make("real_grid", box), make_fourier_disk(box, RADIUS)
    rotation = random_rotations(4, generator())
    expected = slice_volume(volume_from_map(volume.to_map(), RADIUS), rotation, disk)
    torch.testing.assert_close(volume.slice(rotation, disk), expected)


def test_fitted_networks_agree_with_their_map_and_grid(fitted):
    disk, rotation = make_fourier_disk(16, RADIUS), random_rotations(8, generator(7))
    slices = fitted.slice(rotation, disk).detach()
    truth = slice_volume(volume_from_map(make_blobs(16)), rotation, disk)
    assert relative_error(slices, truth) < 0.1
    # The map is the network's inside the radius only, so the last shells lack neighbours to interpolate.
    inner = disk.count(RADIUS - 1)
    from_map = slice_volume(volume_from_map(fitted.to_map(), RADIUS), rotation, disk)
    assert relative_error(from_map[:, :inner], slices[:, :inner]) < 0.1
    coarse, fine = (slice_volume(fitted.to_fourier_volume(RADIUS, p), rotation, disk) for p in (2, 4))
    assert relative_error(coarse[:, :inner], slices[:, :inner]) < 0.1
    assert relative_error(fine[:, :inner], slices[:, :inner]) < 0.05


@pytest.mark.parametrize("padding", [1, 2, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_padded_grid_is_exact_at_its_points(kind, box, padding):
    volume, disk = make(kind, box), make_fourier_disk(box, RADIUS)
    rotation = torch.stack((IDENTITY, ONTO_THE_SEAM))
    read = slice_volume(volume.to_fourier_volume(RADIUS, padding), rotation, disk)
    torch.testing.assert_close(read, volume.slice(rotation, disk), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", GRIDS)
def test_the_padded_grid_of_a_grid_has_its_slices(kind, box):
    volume, rotation = generic(kind, box), random_rotations(3, generator()).double()
    for radius in (3.0, RADIUS):
        disk = make_fourier_disk(box, radius)
        read = slice_volume(volume.to_fourier_volume(radius), rotation, disk)
        torch.testing.assert_close(read, volume.slice(rotation, disk))


def test_the_padded_grid_has_the_shape_asked_for(kind, box):
    volume = make(kind, box)
    for radius, padding in ((3.0, 2), (RADIUS, 1), (6.3, 2), (6.3, 3)):
        grid = volume.to_fourier_volume(radius, padding)
        assert grid.values.shape == (*grid_shape(radius, padding), 2)
        assert not grid.values.requires_grad and grid.box_size == box and grid.padding == padding
    assert not volume.to_map().requires_grad


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_padded_grid_of_a_network_is_zero_beyond_its_radius(kind):
    volume = make(kind)
    values = volume.to_fourier_volume(7.0).values
    outside = half_space_radius(values.shape, 2) > RADIUS
    assert (values[outside] == 0).all() and (values[~outside] != 0).any(-1).all()


@pytest.mark.parametrize("kind", GRIDS)
def test_a_step_can_read_a_grid_twice(kind):
    volume, disk = make(kind), make_fourier_disk(16, RADIUS)
    assert isinstance(volume, AbstractGridVolume)
    rotation, grid = random_rotations(2, generator()), volume.to_differentiable_volume()
    twice = torch.cat([slice_volume(grid, one[None], disk) for one in rotation])
    torch.testing.assert_close(twice, volume.slice(rotation, disk))
    twice.abs().sum().backward()
    assert all(p.grad is not None for p in volume.parameters())


# Precision, size, reproducibility


def test_bfloat16_stays_near_float32(kind):
    volume, disk = make(kind, width=128), make_fourier_disk(16, RADIUS)
    rotation = random_rotations(8, generator()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        low = volume.slice(rotation, disk)
    low.abs().square().sum().backward()
    assert low.dtype == torch.complex64
    assert relative_error(low, volume.slice(rotation, disk)) < 0.02
    assert rotation.grad is not None and rotation.grad.isfinite().all()
    if kind in GRIDS:
        assert torch.equal(low, volume.slice(rotation, disk))


def test_bfloat16_stays_near_float32_when_fitted(fitted):
    disk, rotation = make_fourier_disk(16, RADIUS), random_rotations(8, generator())
    with torch.autocast("cpu", torch.bfloat16):
        low = fitted.slice(rotation, disk)
    assert relative_error(low, fitted.slice(rotation, disk)) < 0.02


def test_the_sine_of_a_bfloat16_is_taken_in_float32():
    """`SineStack` relies on it."""
    angle = torch.linspace(-60, 60, 10_001).bfloat16()
    assert torch.equal(angle.sin(), angle.float().sin().bfloat16())


@pytest.mark.parametrize("budget", [20_000, 100_000, 332_036])
def test_networks_get_equal_budgets(budget):
    for kind in NETWORKS:
        width = width_for_budget(kind, budget)
        assert abs(count_parameters(make(kind, width=width)) / budget - 1) < 0.03


def test_default_networks_have_equal_budgets():
    counts = [count_parameters(make_volume(kind, 16)) for kind in NETWORKS]
    assert counts[0] == 332_036 and max(counts) / min(counts) < 1.03


def test_the_seed_alone_decides_the_parameters(kind):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = make(kind)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second, other = make(kind), make(kind, seed=1)
    drawn = make_volume(kind, 16, RADIUS, width=WIDTH, seed=generator(0))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]) and torch.equal(value, drawn.state_dict()[name])
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_the_state_dict_holds_all(kind):
    disk, rotation = make_fourier_disk(16, RADIUS), random_rotations(3, generator())
    first, second = make(kind, scale=2.5), make(kind, seed=1)
    assert not torch.allclose(first.slice(rotation, disk), second.slice(rotation, disk))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.slice(rotation, disk), second.slice(rotation, disk))


def test_the_scale_multiplies_the_volume(kind):
    disk, rotation = make_fourier_disk(16, RADIUS), random_rotations(3, generator())
    one, ten = make(kind), make(kind, scale=10.0)
    torch.testing.assert_close(10 * one.slice(rotation, disk), ten.slice(rotation, disk))
    torch.testing.assert_close(10 * one.to_map(), ten.to_map(), rtol=1e-4, atol=1e-6)
    assert 0.01 < one.slice(rotation, disk).abs().square().mean().sqrt() < 2


# Bad input


def test_a_disk_beyond_the_radius_is_refused(kind):
    volume = make(kind)
    with pytest.raises(ValueError, match="shells"):
        volume.slice(IDENTITY[None], make_fourier_disk(16, RADIUS + 1))
    volume.slice(IDENTITY[None], make_fourier_disk(16, RADIUS))


def test_the_radius_is_bounded_by_the_box(kind, box):
    volume = make_volume(kind, box, float(box), width=WIDTH)
    assert isinstance(volume, AbstractVolume) and volume.radius == full_radius(box)
    assert volume.slice(IDENTITY[None], make_fourier_disk(box)).isfinite().all()


def test_fourier_net_is_the_papers():
    """An envelope near one, and two branches of three and two hidden layers."""
    volume = make_volume("fourier_net", 16)
    assert isinstance(volume, FourierNet)
    assert (len(volume.phase.hidden), len(volume.envelope.hidden)) == (3, 2)
    assert (volume.phase.first.omega, volume.envelope.first.omega) == (40, 30)
    points = torch.rand(500, 3, generator=generator()) * 2 - 1
    assert (volume.envelope(points).exp() - 1).abs().max() < 0.3
