"""STAR files that are not what they should be."""

from __future__ import annotations

from pathlib import Path

from behaviour import check_particles
from hypothesis import given
from mutations import TEXT, spoiled

NEW = """# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
1 first 300.0 2.7 0.1 2.0 16
2 second 200.0 2.7 0.1 2.0 16


# version 30001

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnDefocusU #4
_rlnDefocusV #5
_rlnDefocusAngle #6
_rlnAngleRot #7
_rlnAngleTilt #8
_rlnAnglePsi #9
_rlnOriginXAngst #10
_rlnOriginYAngst #11
_rlnRandomSubset #12
_rlnClassNumber #13
000001@stack.mrcs m1.mrc 1 12000.5 11000.0 45.0 10.0 20.0 30.0 1.5 -2.5 1 1
000002@stack.mrcs m1.mrc 1 12000.5 11000.0 45.0 11.0 21.0 31.0 0.0 0.0 2 1
000003@stack.mrcs m2.mrc 2 13000.0 12500.0 -5.0 12.0 22.0 32.0 3.25 1.0 1 2
000004@stack.mrcs m2.mrc 2 13000.0 12500.0 -5.0 13.0 23.0 33.0 -1.0 2.0 2 2
"""
OLD = """
data_

loop_
_rlnVoltage #1
_rlnDefocusU #2
_rlnDefocusV #3
_rlnDefocusAngle #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
_rlnMagnification #7
_rlnDetectorPixelSize #8
_rlnImageName #9
_rlnAngleRot #10
_rlnAngleTilt #11
_rlnAnglePsi #12
_rlnOriginX #13
_rlnOriginY #14
_rlnPhaseShift #15
300.0 12000.0 11000.0 30.0 2.7 0.1 10000.0 2.0 1@stack.mrcs 1.0 2.0 3.0 0.5 -0.5 0.0
300.0 12000.0 11000.0 30.0 2.7 0.1 10000.0 2.0 2@stack.mrcs 1.0 2.0 3.0 0.5 -0.5 90.0
"""
SINGLE = """data_optics
_rlnOpticsGroup 1
_rlnVoltage 300
_rlnImagePixelSize 2.0

data_images
loop_
_rlnImageName
'1@stack.mrcs'
"2@stack.mrcs" # a comment
"""
VALID = [text.encode() for text in (NEW, OLD, SINGLE)]


@given(content=spoiled(VALID, TEXT))
def test_spoiled_star_files(folder: Path, content: bytes) -> None:
    path = folder / "fuzz.star"
    path.write_bytes(content)
    check_particles(path)
