"""Articles and novels as plain text for train.py: python tools/get_text.py OUT.txt FOLDER

    git clone https://github.com/ag-gipp/wikiextractor && python tools/get_text.py featured.txt wikiextractor/text-excellent
    git clone https://github.com/Vibhas-hs-edu/WikiTasks && python tools/get_text.py recent.txt WikiTasks/text/AA
    git clone https://github.com/COST-ELTeC/ELTeC-eng && python tools/get_text.py novels.txt ELTeC-eng/level1

FOLDER holds files of WikiExtractor (wiki_00, ...; <doc title="..."> elements) or TEI novels (.xml). OUT.txt gets a paragraph a
line, and a line `= Title =` before each article.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DOCUMENT = re.compile(r'<doc [^>]*title="([^"]*)"[^>]*>\n(.*?)</doc>', re.DOTALL)
PARAGRAPH = re.compile(r"<p[^>]*>(.*?)</p>", re.DOTALL)
TAG = re.compile(r"<[^>]+>")
# Characters: shorter lines of an article are headings, shorter articles are stubs.
LINE, ARTICLE, NOVEL_LINE = 40, 200, 20


def articles(text: str) -> Iterator[str]:
    """The lines of each article in a file of WikiExtractor, its title first."""
    for found in DOCUMENT.finditer(text):
        body = [html.unescape(TAG.sub("", line)).strip() for line in found[2].split("\n")[1:]]
        body = [line for line in body if len(line) > LINE and not line.startswith("BULLET::")]
        if sum(map(len, body)) >= ARTICLE:
            yield "\n".join([f"= {html.unescape(found[1])} =", *body])


def novel(text: str) -> Iterator[str]:
    """The paragraphs of a TEI novel's body."""
    for found in PARAGRAPH.finditer(text, text.find("<body>")):
        line = html.unescape(re.sub(r"\s+", " ", TAG.sub("", found[1]))).strip()
        if len(line) > NOVEL_LINE:
            yield line


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.txt", type=Path)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    options = parser.parse_args(arguments)
    files = sorted(p for p in options.folder.rglob("*") if p.is_file() and (p.name.startswith("wiki_") or p.suffix == ".xml"))
    if not files:
        print(f"get_text: {options.folder} has no files wiki_* of WikiExtractor and no .xml novels", file=sys.stderr)
        return 1
    with open(options.out, "w", encoding="utf-8") as out:
        for file in files:
            text = file.read_text("utf-8", errors="ignore")
            out.writelines(f"{line}\n" for line in (novel if file.suffix == ".xml" else articles)(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
