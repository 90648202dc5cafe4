"""Counts phrases that the project's style avoids, in comments and documents.

    prose.py [--list] [FILE…]      all tracked files if none is named

Prints the words, the markers and the markers per 10,000 words of each directory; with --list also each marker's place.
Fails if a directory has more markers than its budget in BUDGET, or more than LIMIT if it has none there.
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# Markers per 10,000 words.
LIMIT = 10
# Directories that are still being rewritten. A budget only goes down.
BUDGET = {"tests/integration": 200}

MARKERS = [
    r"\babsent (where|if)\b",
    r"\banew\b",
    r"\bbesides\b",
    r"[,:;] for (it|they|there|he|she|its|nobody|somebody|some|whoever) ",
    r"\bgo(es|ing)? on\b",
    r"\b(is|are|was|were) to be\b",
    r"\blet(s)? go\b",
    r"\bmeanwhile\b",
    r"\bnobody\b",
    r"\bof which\b",
    r"\bput up with\b",
    r"\bsomebody\b",
    r"\btak(e|es|en|ing) up\b",
    r"\b(tell|tells|told)\b(?! apart)",
    r"\b(is|are|was|were|be|not) there\b(?! (is|are|was|a|an|no)\b)",
    r"\bwhat (becomes|became) of\b",
    r"\bwhatever\b",
    r"\bwhoever\b",
    r"\bwith which\b",
    r"\bwhich (is|are) nothing\b",
]
MARKER = re.compile("|".join(MARKERS), re.IGNORECASE)
# The first line of a documentation comment that begins with a question word instead of a verb or a noun.
QUESTION = re.compile(r"^(What|Whether|How|Where|Which|Who|Whom|Whose|That)\b")
WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")

COMMENT = {
    ".rs": re.compile(r"^\s*(//[/!]?)\s?(.*)$"),
    ".proto": re.compile(r"^\s*(//)\s?(.*)$"),
}
HASH = re.compile(r"^\s*(#+)\s?(?!!)(.*)$")
HASHED = {".toml", ".yaml", ".yml", ".sh", ".py", ".tpl", ".service", ""}


def lines_of(path):
    """The lines of prose: the number, the text, and whether it opens a documentation comment."""
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    suffix = path.suffix
    if suffix in (".md", ".gotmpl"):
        fenced = False
        for number, line in enumerate(text, 1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif not fenced and not line.startswith("    "):
                yield number, re.sub(r"`[^`]*`", "", line), False
        return
    pattern = COMMENT.get(suffix) or (HASH if suffix in HASHED else None)
    if pattern is None:
        return
    before = None
    for number, line in enumerate(text, 1):
        found = pattern.match(line)
        if found:
            mark, prose = found.groups()
            opens = mark in ("///", "//!") and before != mark
            yield number, re.sub(r"`[^`]*`", "", prose), opens
        before = found and found.group(1)


def directory(path):
    parts = path.parts
    if parts[0] in ("src", "tests", "helm", "benches") and len(parts) > 2:
        return "/".join(parts[:2])
    return parts[0] if len(parts) > 1 else "."


def tracked():
    names = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True)
    skipped = ("Cargo.lock", "package-lock.json", "helm/README.md", "scripts/lib/prose.py")
    return [Path(name) for name in names.stdout.splitlines() if name not in skipped]


def main(arguments):
    lists = "--list" in arguments
    named = [Path(name) for name in arguments if name != "--list"]
    words, markers = defaultdict(int), defaultdict(int)
    for path in named or tracked():
        if not path.is_file():
            continue
        place = directory(path)
        for number, prose, opens in lines_of(path):
            words[place] += len(WORD.findall(prose))
            found = [match.group(0) for match in MARKER.finditer(prose)]
            found += QUESTION.findall(prose) if opens else []
            markers[place] += len(found)
            if lists:
                for phrase in found:
                    print(f"{path}:{number}: {phrase.strip()!r}")
    failed = False
    for place in sorted(words):
        rate = markers[place] * 10_000 / max(words[place], 1)
        budget = BUDGET.get(place, LIMIT)
        # One marker in a small directory is no trend.
        is_over = rate > budget and markers[place] > 1
        failed |= is_over
        print(f"{place:28} {words[place]:7} words {markers[place]:5} markers {rate:7.1f} per 10,000{'  TOO MANY' if is_over else ''}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
