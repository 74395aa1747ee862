"""STAR files of particles with poses, written without the package's own writer."""

from __future__ import annotations

import torch

from cryoai.geometry.rotations import rotation_to_euler_zyz

PIXEL = 3.0


def write_star(path, rotation, translation, names, junk=None, classes=None):
    angles = rotation_to_euler_zyz(torch.from_numpy(rotation)).numpy()
    columns = [
        "ImageName",
        "OpticsGroup",
        "AngleRot",
        "AngleTilt",
        "AnglePsi",
        "OriginXAngst",
        "OriginYAngst",
    ]
    lines = ["data_optics", "", "loop_", "_rlnOpticsGroup #1", "_rlnOpticsGroupName #2"]
    lines += ["_rlnImagePixelSize #3", "_rlnImageSize #4", f"1 group {PIXEL} 64", "", "data_particles", ""]
    lines += ["loop_"] + [f"_rln{name} #{i + 1}" for i, name in enumerate(columns)]
    for name, values in (("_cryoaiJunk", junk), ("_rlnClassNumber", classes)):
        if values is not None:
            lines.append(name)
    for i, (name, angle, t) in enumerate(zip(names, angles, translation, strict=True)):
        mark = "".join(f" {values[i]}" for values in (junk, classes) if values is not None)
        lines.append(f"{name} 1 " + " ".join(f"{v:.8f}" for v in (*angle, *-t)) + mark)
    path.write_text("\n".join(lines) + "\n\n")
