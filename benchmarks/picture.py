"""The README's picture: some particles as they come, and the map made from them.

    python benchmarks/picture.py SIMULATED RECONSTRUCTION docs/images/reconstruction.png

``SIMULATED`` and ``RECONSTRUCTION`` are folders of ``cryoai simulate`` and ``cryoai reconstruct``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from cryoai.io import StackReader, read_map
from cryoai.report.picture import render_map

_WIDTH, _TILES = 1500, 10


def main() -> None:
    simulated, reconstruction, output = (Path(word) for word in sys.argv[1:4])
    images = StackReader(simulated / "particles.mrcs").read(np.arange(_TILES))
    low, high = np.percentile(images, [1, 99])
    grey = (np.clip((images - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    side = _WIDTH // _TILES
    tiles = [np.asarray(Image.fromarray(tile).resize((side - 4, side - 4))) for tile in grey]
    strip = np.full((side, _WIDTH, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        strip[2 : side - 2, i * side + 2 : (i + 1) * side - 2] = tile[..., None]
    with tempfile.TemporaryDirectory() as folder:
        density = read_map(reconstruction / "map.mrc")
        render_map(density.density, density.voxel_size, Path(folder) / "map.png", size=(_WIDTH, 500))
        surface = np.asarray(Image.open(Path(folder) / "map.png").convert("RGB"))
    Image.fromarray(np.concatenate((strip, surface))).save(output, optimize=True)


if __name__ == "__main__":
    main()
