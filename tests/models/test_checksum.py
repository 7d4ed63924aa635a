from __future__ import annotations

import hashlib

from gapssg.models.checksum import BLANK, CHECKSUM, has_changed, with_checksum

START, END = f'weights{{"a":1,"{CHECKSUM}":"'.encode(), b'","b":2}weights'


def test_a_checksum_is_that_of_the_file_with_zeros_in_its_place():
    blank = START + BLANK.encode() + END
    assert with_checksum(blank) == START + hashlib.sha256(blank).hexdigest().encode() + END
    assert with_checksum(b"another file") == b"another file"


def test_every_changed_bit_and_every_missing_byte_is_noticed_but_in_the_key():
    content = with_checksum(START + BLANK.encode() + END)
    assert not has_changed([content])
    key = range(START.index(b'"content'), len(START))
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            assert has_changed([bytes(changed)]) == (place not in key)
        assert has_changed([content[:place] + content[place + 1 :]]) == (place not in key)


def test_a_change_is_noticed_where_another_program_wrote_the_description_with_spaces():
    content = with_checksum(START + BLANK.encode() + END)
    assert has_changed([content.replace(b":", b": ")])


def test_the_blocks_in_which_a_file_is_read_do_not_matter():
    content = with_checksum(bytes(300) + START + BLANK.encode() + END + bytes(300))
    changed = content[:-1] + b"1"
    for size in range(1, len(content)):
        for each, has_it in ((content, False), (changed, True)):
            assert has_changed([each[start : start + size] for start in range(0, len(each), size)]) == has_it
    assert not has_changed([b"another file"])
    assert not has_changed([])
