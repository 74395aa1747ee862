"""Valid files, spoiled."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

WORDS = [
    word.encode()
    for word in (
        "", '"', "'", '""', "#", ";", "@", "1@", "@stack.mrcs", "0@stack.mrcs", "2@stack.mrcs", "1@none.mrcs",
        "99999999999@stack.mrcs", "-1@stack.mrcs", "٣@stack.mrcs", "1@/", "1@.", "1@..", "1@/dev/zero",
        "1@/dev/null", "1@" + "a" * 300, "1@" + "a/" * 3000, "1@" + "../" * 60 + "x", "stack.mrcs",
        "'a b'", '"1@a b"', "it's", "[bold]", "nan", "NaN", "None", "<NA>", "inf", "-inf", "1e400", "1e308",
        "-1e308", "1e-320", "0", "-0", "-1",
        "1", "2", "0.5", "1e10", "2147483648", "9" * 20, "-" + "9" * 20, "9" * 400, "9" * 5000, "0x10",
        "1_000", "True",
        "1,5", "١", "é", "\u2028", "\u00a0", "\ufeff", "\x85", "\x1c", "\x1f", "\x0b", "\0", "\t", "\n", "\r",
        "\ud7ff",
        "data_", "data_particles", "data_optics", "data_x", "loop_", "_", "_rlnImageName", "_rlnOpticsGroup",
        "_rlnAngleRot", "_rlnMagnification", "_rlnDetectorPixelSize", "_rlnImagePixelSize", "_rlnImageSize",
        "_rlnRandomSubset", "_rlnOriginX", "_rlnTomoParticleName", "_cisTEMx", "_rlnPhaseShift", "_rlnCtfBfactor",
        "_rlnCtfDataAreCtfPremultiplied", "_rlnBeamTiltX", "save_", "stop_", "global_", "_a.b",
    )
] + [b"\xff\xfe", b"\x80", b"\xed\xa0\x80"]  # fmt: skip

Change = Callable[[st.DrawFn, bytes], bytes]


def _place(draw: st.DrawFn, data: bytes) -> int:
    return draw(st.integers(0, max(0, len(data) - 1)))


def _set_byte(draw: st.DrawFn, data: bytes) -> bytes:
    place = _place(draw, data)
    return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]


def _truncate(draw: st.DrawFn, data: bytes) -> bytes:
    return data[: _place(draw, data)]


def _insert(draw: st.DrawFn, data: bytes) -> bytes:
    place = _place(draw, data)
    return data[:place] + draw(st.binary(min_size=1, max_size=12)) + data[place:]


def _repeat(draw: st.DrawFn, data: bytes) -> bytes:
    place, length = _place(draw, data), draw(st.integers(1, 64))
    return data[:place] + data[place : place + length] * 2 + data[place + length :]


def _insert_word(draw: st.DrawFn, data: bytes) -> bytes:
    place = _place(draw, data)
    return data[:place] + draw(st.sampled_from(WORDS)) + data[place:]


def _in_pieces(separator: bytes) -> list[Change]:
    """Changes of lines or words."""

    def some(draw: st.DrawFn, data: bytes) -> tuple[list[bytes], int]:
        pieces = data.split(separator)
        return pieces, draw(st.integers(0, len(pieces) - 1))

    def delete(draw: st.DrawFn, data: bytes) -> bytes:
        pieces, place = some(draw, data)
        return separator.join(pieces[:place] + pieces[place + 1 :])

    def double(draw: st.DrawFn, data: bytes) -> bytes:
        pieces, place = some(draw, data)
        return separator.join(pieces[: place + 1] + pieces[place:])

    def swap(draw: st.DrawFn, data: bytes) -> bytes:
        pieces, place = some(draw, data)
        other = draw(st.integers(0, len(pieces) - 1))
        pieces[place], pieces[other] = pieces[other], pieces[place]
        return separator.join(pieces)

    def replace(draw: st.DrawFn, data: bytes) -> bytes:
        pieces, place = some(draw, data)
        pieces[place] = draw(st.sampled_from(WORDS))
        return separator.join(pieces)

    return [delete, double, swap, replace]


BYTES: list[Change] = [_set_byte, _truncate, _insert, _repeat]
TEXT: list[Change] = [*BYTES, _insert_word, *_in_pieces(b"\n"), *_in_pieces(b" "), *_in_pieces(b" ")]


@st.composite
def spoiled(draw: st.DrawFn, valid: list[bytes], changes: list[Change]) -> bytes:
    """One of some valid files after one to four changes."""
    data = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, 4))):
        data = draw(st.sampled_from(changes))(draw, data)
    return data
