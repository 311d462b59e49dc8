"""Real and strange lines of text, and vocabularies trained on them, for tests that compare tokenizers."""

import calendar
import functools
import importlib.util
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np

# One line in each of several scripts, with the accents, marks and signs that its users write.
WRITTEN = """\
Ein Müller aus Österreich trank 12,5 l „Weißbier“ — für 3 € (fast geschenkt!).
Où était-ce ? Çà et là : l'œuvre d'Éluard, naïve et déjà-vue…
¿Cuántos años tenía el señor Núñez? ¡Ni idea!
İstanbul'da ışık, ığdır ve ŞİŞLİ; Türkçe büyük harf İ.
Ο Όμηρος έγραψε ΟΔΥΣΣΕΙΑ και ΑΘΗΝΑΣ.
Съешь ещё этих мягких французских булок, да выпей же чаю; ёлка ЁЛКА.
東京都は日本の首都です。人口は約1400万人。
今天天气很好，我们去公园散步吧！𠀀𪚥是罕见字。
서울은 대한민국의 수도이다. 한글은 1443년에 만들어졌다.
สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง
नमस्ते दुनिया, हिन्दी में क्ष और ज्ञ
السلام عليكم، ﷺ كيف حالك؟ ١٢٣
שָׁלוֹם עוֹלָם, מה שלומך?
Việt Nam: Tiếng Việt có dấu, Đường phố Hồ Chí Minh.
Ａ　ｆｕｌｌ－ｗｉｄｔｈ　ｌｉｎｅ　１２３，ｶﾀｶﾅ ㍿ ﬁ ½ № ™ ②
👩‍👩‍👧‍👦 family 👍🏽 thumbs 🇩🇪 flag ☺️ ❤️‍🔥 end
e\u0301 n\u0303 a\u0308\u0332 o\u0302\u0301 and \u0301alone
tab\there  two spaces   three\u00a0nbsp\u2003em\u200bzero\u3000wide
null\x00 bell\x07 escape\x1b[0m delete\x7f c1\x85 bom\ufeff soft\u00adhyphen \ufffd \x1c \u2028 end
`` quotes '' “curly” ‘single’ don't can't I'LL we've «guillemets»
a_b __init__ x==y; f(x)->{a:[1,2]} C:\\path\\to 100% #tag @user $5.00 ^_^ ~/.rc
https://example.org/a?b=c&d=%20#frag user.name+tag@example.co.uk
[CLS] [SEP] [PAD] [UNK] [MASK] text[MASK]text [mask] [ MASK ] [CLS][SEP]
<s> </s> <pad> <unk> <mask> text<mask>text <MASK> <s>NOTUSED </s></s> <s><s>
word   <mask>   word \t[MASK]\n next ▁▁ ▁word word▁ ▁<mask>
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
"""


@functools.cache
def lines(count=2000):
    """`count` lines, always the same: WRITTEN, pages of Python's documentation, names of characters, and mixtures of these."""
    rng = np.random.default_rng(0)
    found = [*WRITTEN.split("\n"), "line\r\nbreak\rcarriage\nnewline\x0bvertical\x0cform", " ", "\n", "\t ", "\u200b"]
    prose = [line for text in _prose() for line in text.splitlines() if line.strip()]
    found += [prose[i] for i in rng.permutation(len(prose))[: count // 2]]
    points = [c for c in map(chr, rng.integers(32, 0x30000, 20000)) if unicodedata.name(c, "")]
    while len(found) < count - 300:
        some = rng.choice(points, rng.integers(1, 20))
        words = rng.choice(prose, 2)
        found.append(" ".join([*some[:5], unicodedata.name(some[0]).title(), words[0][: rng.integers(40)], "".join(some[5:])]))
    while len(found) < count:
        first, second = rng.choice(found, 2)
        found.append(
            first[: rng.integers(1, 80)] + rng.choice(["", " ", "  ", "\n", " [MASK]", "<mask> ", "é"]) + second[-rng.integers(1, 80) :]
        )
    return found


def _prose():
    """Texts that every Python carries."""
    topics = importlib.util.find_spec("pydoc_data.topics")
    yield Path(topics.origin).read_text("utf-8") if topics else re.__doc__
    for name in ("re", "json", "decimal", "argparse", "zipfile"):
        yield Path(importlib.util.find_spec(name).origin).read_text("utf-8")
    yield calendar.__doc__ or ""
    yield sys.copyright
