"""H.264 whose fields are pictures of their own, as many broadcasts have it.

No encoder at hand writes it. So the bits are put together here, by the names of
ITU-T H.264, 7.3; macroblocks hold their samples as they are (I_PCM).
"""

# In macroblocks of 16x16 samples; a field has half of the rows.
WIDTH, FIELD_HEIGHT = 2, 1


class _Bits:
    """A unit of the stream."""

    def __init__(self) -> None:
        self._text = ""

    def u(self, count: int, value: int) -> "_Bits":
        """An unsigned number of a fixed length."""
        self._text += format(value, f"0{count}b")
        return self

    def ue(self, *values: int) -> "_Bits":
        """Unsigned numbers by Exp-Golomb; a signed 0 is the same."""
        for value in values:
            text = format(value + 1, "b")
            self._text += "0" * (len(text) - 1) + text
        return self

    def align(self) -> "_Bits":
        self._text += "0" * (-len(self._text) % 8)
        return self

    def unit(self, head: int) -> bytes:
        """Its bytes, in which no start code can appear."""
        self._text += "1"
        self.align()
        found = bytearray()
        for byte in int(self._text, 2).to_bytes(len(self._text) // 8, "big"):
            if found[-2:] == b"\0\0" and byte <= 3:
                found.append(3)
            found.append(byte)
        return b"\0\0\0\1" + bytes([head]) + found


def stream(count: int) -> bytes:
    """Some frames, each of an upper and a lighter lower field."""
    # Main profile; frames in their order (pic_order_cnt_type 2); fields.
    parameters = _Bits().u(8, 77).u(8, 0).u(8, 30).ue(0, 0, 2, 1).u(1, 0)
    parameters.ue(WIDTH - 1, FIELD_HEIGHT - 1).u(5, 0b00100)
    units = [parameters.unit(0x67)]
    pictures = _Bits().ue(0, 0).u(2, 0).ue(0, 0, 0).u(3, 0).ue(0, 0, 0)
    units.append(pictures.u(3, 0b100).unit(0x68))
    for number in range(count):
        for is_bottom in (0, 1):
            is_first = not number and not is_bottom
            # An intra slice, frame_num, field_pic_flag, bottom_field_flag.
            slice_ = _Bits().ue(0, 7, 0).u(4, number % 16).u(1, 1)
            slice_.u(1, is_bottom)
            if is_first:
                slice_.ue(0).u(2, 0)
            else:
                slice_.u(1, 0)
            slice_.ue(0, 1)
            for _ in range(WIDTH * FIELD_HEIGHT):
                slice_.ue(25).align()
                for _ in range(256):
                    slice_.u(8, 40 + 8 * number + 20 * is_bottom)
                for _ in range(128):
                    slice_.u(8, 128)
            units.append(slice_.unit(0x65 if is_first else 0x61))
    return b"".join(units)
