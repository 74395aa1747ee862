"""cryoAI's training step written plainly, to measure `throughput.py` against: float32, no symmetry used, no tricks.

The networks, the loss and the optimiser are those of configs/paper.yaml. Both poses of each image (of itself and of
its copy turned by 180°) go through the volume with gradient: FourierNet at all box × box frequencies of the slice,
CTF and shift as complex products, inverse FFT, squared differences from the pixels, the smaller of the two.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from harness import TestSet
from torch import Tensor, nn

from cryoai.geometry.fourier import disk_to_images, make_fourier_disk
from cryoai.run.config import ReconstructConfig
from cryoai.types import CtfParameters


class Baseline:
    """Training steps; images and CTFs are in memory from the start."""

    def __init__(self, test: TestSet, config: ReconstructConfig) -> None:
        data, options = test.data, config.amortize
        batch = data.batch(np.arange(len(data)))
        box = data.disk.box_size
        self.images = disk_to_images(batch.images, make_fourier_disk(box))
        self.scale = float(batch.images.abs().square().mean().sqrt())
        assert test.particles.ctf is not None
        self.ctf = plain_ctf(test.particles.ctf, box, data.pixel_size)
        torch.manual_seed(config.seed)
        self.model = PlainModel(box, data.pixel_size, config, self.scale)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), options.encoder_learning_rate, amsgrad=options.amsgrad
        )
        self.clip, self.size, self.place = options.gradient_clip, options.batch_size, 0

    def step(self) -> None:
        rows = [(self.place + i) % len(self.images) for i in range(self.size)]
        self.place += self.size
        self.optimizer.zero_grad()
        loss = self.model(self.images[rows], self.ctf[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()


class PlainModel(nn.Module):
    def __init__(self, box: int, pixel_size: float, config: ReconstructConfig, scale: float) -> None:
        super().__init__()
        self.box, self.pixel_size, self.scale = box, pixel_size, scale
        self.encoder = PlainEncoder(config.encoder.widths, config.encoder.filter_sigmas)
        features = config.encoder.widths[-1] * (box >> (len(config.encoder.widths) + 1)) ** 2
        self.rotation = plain_mlp(features, 512, 256, 6)
        self.translation = plain_mlp(features, 512, 256, 2)
        width = config.amortize.volume_width
        self.phase, self.envelope = PlainSiren(3, width, 40.0), PlainSiren(2, width, 30.0)
        axis = torch.fft.fftfreq(box, 1 / box)
        self.register_buffer("ky", axis[:, None].expand(box, box))
        self.register_buffer("kx", axis.expand(box, box))

    def forward(self, images: Tensor, ctf: Tensor) -> Tensor:
        """The symmetrised loss of a batch, in units of ``scale``."""
        turned = images.flip((1, 2)).roll((1, 1), (1, 2))
        both = torch.cat((images, turned))
        features = self.encoder(both)
        rotation, translation = gram_schmidt(self.rotation(features)), self.translation(features)
        spectrum = self.slice(rotation)
        shift = 0.1 * self.box * translation
        phase = (-2 * math.pi / self.box) * (shift[:, :1, None] * self.kx + shift[:, 1:, None] * self.ky)
        spectrum = spectrum * torch.exp(1j * phase) * ctf.repeat(2, 1, 1)
        model = torch.fft.fftshift(torch.fft.ifft2(spectrum, norm="ortho"), dim=(1, 2)).real
        error = ((model - both / self.scale) ** 2).mean((1, 2))
        return torch.minimum(*error.chunk(2)).mean()

    def slice(self, rotation: Tensor) -> Tensor:
        plane = torch.stack((self.kx, self.ky, torch.zeros_like(self.kx)), -1).reshape(1, -1, 3)
        points = (plane @ rotation.transpose(1, 2)) / (self.box / 2)
        values = torch.exp(self.envelope(points)) * self.phase(points)
        return torch.view_as_complex(values).reshape(-1, self.box, self.box)


class PlainEncoder(nn.Module):
    """A bank of 11 × 11 Gaussian filters and the first layers of VGG16 with BatchNorm."""

    def __init__(self, widths: tuple[int, ...], sigmas: tuple[float, ...]) -> None:
        super().__init__()
        tap = torch.arange(-5.0, 6.0)
        kernels = [torch.exp(-(tap[:, None] ** 2 + tap**2) / (2 * sigma**2)) for sigma in sigmas]
        self.register_buffer("kernels", torch.stack([kernel / kernel.sum() for kernel in kernels])[:, None])
        layers: list[nn.Module] = []
        channels = len(sigmas)
        for stage, width in enumerate(widths):
            for _ in range(3 if stage == 2 else 2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2) if stage < 3 else nn.AvgPool2d(2))
        self.backbone = nn.Sequential(*layers, nn.MaxPool2d(2))

    def forward(self, images: Tensor) -> Tensor:
        channels = F.conv2d(F.pad(images[:, None], (5, 5, 5, 5), mode="reflect"), self.kernels)
        mean, deviation = channels.mean((2, 3), keepdim=True), channels.std((2, 3), keepdim=True)
        return self.backbone((channels - mean) / deviation).flatten(1)


class PlainSiren(nn.Module):
    def __init__(self, hidden: int, width: int, omega: float) -> None:
        super().__init__()
        self.omega = omega
        sizes = [3] + [width] * (hidden + 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(width, 2)
        bound = math.sqrt(6 / width) / omega
        for layer in (*self.layers[1:], self.last):
            nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.uniform_(self.layers[0].weight, -1 / 3, 1 / 3)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.last(x)


def plain_mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def gram_schmidt(six: Tensor) -> Tensor:
    a, b = six[:, :3], six[:, 3:]
    a = F.normalize(a, dim=1)
    b = F.normalize(b - (a * b).sum(1, keepdim=True) * a, dim=1)
    return torch.stack((a, b, torch.linalg.cross(a, b)), 2)


def plain_ctf(ctf: CtfParameters, box: int, pixel_size: float) -> Tensor:
    """(n, box, box) contrast transfer functions, origin in the corner."""
    axis = np.fft.fftfreq(box, pixel_size)
    squared, angle = axis[:, None] ** 2 + axis**2, np.arctan2(axis[:, None], axis[None])
    volts = ctf.voltage_kv * 1e3
    wavelength = (12.2643 / np.sqrt(volts * (1 + 0.978466e-6 * volts)))[:, None, None]
    mean = 0.5 * (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom)[:, None, None]
    half = 0.5 * (ctf.defocus_u_angstrom - ctf.defocus_v_angstrom)[:, None, None]
    defocus = mean + half * np.cos(2 * (angle - ctf.defocus_angle[:, None, None]))
    cs = ctf.spherical_aberration_mm[:, None, None] * 1e7
    phase = math.pi * (wavelength * defocus * squared - 0.5 * cs * wavelength**3 * squared**2)
    amplitude = ctf.amplitude_contrast[:, None, None]
    phase = phase + ctf.phase_shift[:, None, None] + np.arctan2(amplitude, np.sqrt(1 - amplitude**2))
    return torch.from_numpy(np.sin(phase) * np.exp(-0.25 * ctf.b_factor[:, None, None] * squared)).float()
