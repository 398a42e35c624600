"""What a text that is not UTF-8 may be: a guess, to say how it can be converted."""

from __future__ import annotations

import re

HIGH = re.compile(rb"[\x80-\xff]")
BESIDE_LETTER = re.compile("(?<=[A-Za-z])[^\x00-\x7f]|[^\x00-\x7f](?=[A-Za-z])")
WESTERN = frozenset(
    "äöüßÄÖÜéèêëàâáãåæçñíìîïóòôõøúùûýÿœšžÉÈÊËÀÂÁÃÅÆÇÑÍÌÎÏÓÒÔÕØÚÙÛÝŒŠŽ€–—‘’“”„…•°§«»·£©®™¿¡½¼²³µ´\xa0ªº×"
)
# (codec, its name for a person and for iconv, the letters of its scripts)
OTHERS = (
    ("cp1251", "Windows-1251", "[а-яА-ЯёЁ]"),
    ("shift_jis", "Shift-JIS", "[\u3040-\u30ff\u4e00-\u9fff\u3000-\u303f\uff01-\uff5e]"),
    ("euc_kr", "EUC-KR", "[\uac00-\ud7a3]"),
    ("gb18030", "GB18030", "[\u4e00-\u9fff\u3000-\u303f\uff01-\uff5e]"),
)
MIN_LETTERS = 3  # such letters
SHARE = 0.95  # of letters beyond ASCII that have to be of the script


def guess(data: bytes) -> str:
    """The name of the encoding that a few bytes around a wrong one seem to have, as `iconv` takes
    it; "" where nothing fits."""
    high = HIGH.findall(data)
    if not high:
        return ""
    western = data.decode("cp1252", "replace")
    is_western = all(char in WESTERN for char in western if char > "\x7f")
    beside = len(BESIDE_LETTER.findall(western))
    if is_western and beside >= len(high) / 2:
        return "Windows-1252"
    for codec, name, letters in OTHERS:
        # the window may begin or end within a character, which some codecs can only ignore
        text = data.decode(codec, "ignore")
        beyond = [char for char in text if char > "\x7f"]
        lost = len(data) - len(text.encode(codec, "ignore"))
        fitting = len(re.findall(letters, text))
        if fitting >= MIN_LETTERS and lost <= 4 and fitting >= SHARE * len(beyond):
            return name
    return "Windows-1252" if is_western else ""
