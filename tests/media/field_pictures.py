"""H.264 whose fields are pictures of their own, as many broadcasts have it.

No encoder at hand writes it. So the bits are put together here, by the names of
ITU-T H.264, 7.3; macroblocks hold their samples as they are (I_PCM).
"""

import itertools
import re

# In macroblocks of 16x16 samples; a field has half of the rows.
WIDTH, FIELD_HEIGHT = 2, 1


def _ue(*values: int) -> str:
    """Unsigned numbers by Exp-Golomb; a signed 0 is the same."""
    texts = [format(value + 1, "b") for value in values]
    return "".join("0" * (len(text) - 1) + text for text in texts)


def _unit(head: int, bits: str) -> bytes:
    """A unit of the stream, in which no start code can appear."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    data = re.sub(b"\0\0(?=[\0-\3])", b"\0\0\3", data)
    return b"\0\0\0\1" + bytes([head]) + data


def stream(count: int) -> bytes:
    """Some frames, each of an upper and a lighter lower field."""
    # Main profile; frames in their order (pic_order_cnt_type 2); fields.
    sequence = f"{77:08b}{0:08b}{30:08b}{_ue(0, 0, 2, 1)}0"
    sequence += f"{_ue(WIDTH - 1, FIELD_HEIGHT - 1)}00100"
    picture = f"{_ue(0, 0)}00{_ue(0, 0, 0)}000{_ue(0, 0, 0)}100"
    units = [_unit(0x67, sequence), _unit(0x68, picture)]
    for number, is_bottom in itertools.product(range(count), (0, 1)):
        is_first = not number and not is_bottom
        # An intra slice, frame_num, field_pic_flag, bottom_field_flag.
        bits = f"{_ue(0, 7, 0)}{number % 16:04b}1{is_bottom}"
        bits += f"{_ue(0)}00" if is_first else "0"
        bits += _ue(0, 1)
        level = 40 + 8 * number + 20 * is_bottom
        for _ in range(WIDTH * FIELD_HEIGHT):
            bits += _ue(25)
            bits += "0" * (-len(bits) % 8)
            bits += 256 * f"{level:08b}" + 128 * f"{128:08b}"
        units.append(_unit(0x65 if is_first else 0x61, bits))
    return b"".join(units)
