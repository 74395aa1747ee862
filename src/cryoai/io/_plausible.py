"""Which values of a microscope can be meant, and which are rather in another unit.

Two limits each: beyond the outer one a value cannot be meant in the unit that RELION and cryoSPARC use, and a
reconstruction with it would be wrong everywhere; beyond the inner one it is only unusual.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from cryoai.io._findings import Finding

POSSIBLE_PIXEL_SIZES = (0.1, 50.0)
"""Å: below, no lens magnifies enough; above, no particle is seen."""
USUAL_PIXEL_SIZES = (0.2, 20.0)
"""Å: binned tomograms reach 15."""
_POSSIBLE_VOLTAGES = (10.0, 4000.0)
"""kV: 0.3 is in MV, 300000 in V; the largest microscope ever built had 3500."""
_USUAL_VOLTAGES = (60.0, 400.0)
_LARGEST_ABERRATION = 100.0
"""mm: 2700 is in µm, 2.7e7 in Å."""
_USUAL_ABERRATION = 7.0
"""mm: the largest objective in use, a BioTwin, has 6.3."""
_ABERRATION_IN_METRES = (0.0012, 0.007)
"""The usual lenses, 1.2 to 7 mm, in m; correctors are given as 0, 0.001 or 0.01 mm."""
_SMALLEST_DEFOCUS = 10.0
"""Å: no session is focused so well; 1 to 5 are µm."""
_USUAL_DEFOCI = (4000.0, 100_000.0)
"""Å, of the median: below 0.4 µm few particles show; above 10 µm only low resolution is left."""
_LARGEST_DEFOCUS = 1e6
"""Å: 100 µm."""
_LARGEST_B_FACTOR = 1000.0
"""Å²: damps 20 Å to half already."""
_FEWEST_FOR_RADIANS = 20
"""Different angles, from which it shows that they are radians: none is above π by chance in (π/90)^20."""


def check_pixel_size(pixel_size: float) -> list[Finding]:
    """A pixel size, Å, that the metadata or the user state."""
    if USUAL_PIXEL_SIZES[0] <= pixel_size <= USUAL_PIXEL_SIZES[1]:
        return []
    return [Finding(f"Pixel size: {pixel_size:.4g} Å is unusual; is it right?")]


def check_voltage(values: Float[np.ndarray, " n"]) -> list[Finding]:
    """Acceleration voltages, kV."""
    lowest, highest = float(values.min()), float(values.max())
    if lowest <= 0:
        return [Finding("rlnVoltage is not positive", "give it in kV", stops=True)]
    for value in (highest, lowest):
        if not _POSSIBLE_VOLTAGES[0] <= value <= _POSSIBLE_VOLTAGES[1]:
            unit, factor = ("V", 1e-3) if value > 1 else ("MV", 1e3)
            why = f"rlnVoltage {value:g} kV cannot be meant"
            return [Finding(why, f"it is in kV: write {value * factor:g} if this is in {unit}", stops=True)]
    if lowest < _USUAL_VOLTAGES[0] or highest > _USUAL_VOLTAGES[1]:
        value = lowest if lowest < _USUAL_VOLTAGES[0] else highest
        return [Finding(f"Voltage: {value:g} kV is unusual; is it right?")]
    return []


def check_aberration(values: Float[np.ndarray, " n"]) -> list[Finding]:
    """Spherical aberrations, mm; correctors make them 0 or negative."""
    largest = float(np.abs(values).max())
    if largest > _LARGEST_ABERRATION:
        unit, factor = ("µm", 1e-3) if largest < 1e5 else ("nm", 1e-6) if largest < 1e7 else ("Å", 1e-7)
        why = f"rlnSphericalAberration {largest:g} mm cannot be meant"
        return [Finding(why, f"it is in mm: write {largest * factor:g} if this is in {unit}", stops=True)]
    if largest > _USUAL_ABERRATION:
        return [Finding(f"Spherical aberration: {largest:g} mm is unusual; is it right?")]
    if _ABERRATION_IN_METRES[0] <= largest <= _ABERRATION_IN_METRES[1]:
        return [Finding(f"Spherical aberration: {largest:g} mm is very small; is it in m?")]
    return []


def check_amplitude_contrast(values: Float[np.ndarray, " n"]) -> list[Finding]:
    """Shares of amplitude contrast."""
    if 0 <= values.min() <= values.max() < 1:
        return []
    wrong = values.max() if values.max() >= 1 else values.min()
    why = f"rlnAmplitudeContrast must lie between 0 and 1, and {wrong:g} does not"
    return [Finding(why, "divide by 100 if it is in per cent", stops=True)]


def check_defocus(u: Float[np.ndarray, " n"], v: Float[np.ndarray, " n"]) -> list[Finding]:
    """Defoci along the two axes, Å."""
    sizes = np.maximum(np.abs(u), np.abs(v))
    largest, median = float(sizes.max()), float(np.median(sizes))
    if 0 < largest < _SMALLEST_DEFOCUS:
        unit, factor = ("µm", 10_000) if largest > 1e-3 else ("m", 10**10)
        why = f"the largest defocus is {largest:.4g} Å (rlnDefocusU, rlnDefocusV), which cannot be meant"
        return [Finding(why, f"it is in Å: multiply by {factor} if this is in {unit}", stops=True)]
    if median > _LARGEST_DEFOCUS:
        why = f"the defocus is {median:.4g} Å (rlnDefocusU, rlnDefocusV; median), which cannot be meant"
        return [Finding(why, "write it in Å", stops=True)]
    findings = []
    lowest = float(min(u.min(), v.min()))
    if lowest < 100:
        unit = "negative (overfocus)" if lowest < 0 else "below 100 Å; is it in µm?"
        findings.append(Finding(f"Defocus: the smallest, {lowest:.4g} Å, is {unit}"))
    if 100 <= median < _USUAL_DEFOCI[0]:
        findings.append(Finding(f"Defocus: the median, {median:.4g} Å, is small; is it in nm?"))
    if median > _USUAL_DEFOCI[1]:
        findings.append(Finding(f"Defocus: the median, {median / 1e4:.4g} µm, is large; is it right?"))
    return findings


def check_phase_shift(degrees: Float[np.ndarray, " n"]) -> list[Finding]:
    """Phase shifts of a phase plate, degrees."""
    largest = float(np.abs(degrees).max())
    if largest > 360:
        return [Finding(f"Phase shift: {largest:.4g}° is more than a turn; is it right?")]
    if 0.2 <= np.median(np.abs(degrees)) and largest <= np.pi:
        return [Finding(f"Phase shift: the largest is {largest:.3g}°; is it in radians?")]
    return []


def check_defocus_angle(degrees: Float[np.ndarray, " n"]) -> list[Finding]:
    """Directions of the astigmatism, degrees."""
    distinct = np.unique(degrees)
    if len(distinct) >= _FEWEST_FOR_RADIANS and np.abs(distinct).max() <= np.pi and np.ptp(distinct) > 1:
        return [Finding("Defocus angle: all lie between -π and π degrees; is it in radians?")]
    return []


def check_b_factor(values: Float[np.ndarray, " n"]) -> list[Finding]:
    """Damping of the CTF, Å²."""
    findings = []
    if values.min() < 0:
        # Some tilt-series programs write the damping with the other sign; amplification is never meant.
        findings.append(Finding("CTF B factor: negative values, taken as damping by their magnitude"))
    largest = float(np.abs(values).max())
    if largest > _LARGEST_B_FACTOR:
        findings.append(Finding(f"CTF B factor: {largest:.4g} Å² damps nearly everything; is it right?"))
    return findings
