"""What differs between two images or two releases: what `make diff-image` calls.

    sh bin/_llm/tool.sh diff-image llm-cpu /mnt/new/images/llm-cpu-3f9c2a81d0b7.sif
    sh bin/_llm/tool.sh diff-image releases/0.1 releases/0.2 --no-files

A and B are image files, names as llm-run knows them, or folders with images. Exit status: 0 the
same contents, 1 they differ, 2 a mistake.
"""

from __future__ import annotations

import argparse
import difflib
import filecmp
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _llm import sif
from _llm.contents.choose import choose_image, images_of_release
from _llm.contents.sizes import human
from _llm.contents.software import (
    Component,
    components,
    image_properties,
    inspect_data,
    labels_of,
    read_software,
    texts,
)
from _llm.contents.trees import Difference, differences, is_sif, other_differences
from _llm.contents.unsquash import damaged
from _llm.errors import LLMError
from _llm.image import end_like_ctrl_c
from _llm.images.sbom import BYTES
from _llm.lookup import split_name
from _llm.printable import escaped

SAME_BYTES, SAME_CONTENTS, DIFFERENT = "the same bytes", "the same contents", "different"
MOST_ROWS = 15
# The script that a definition's %environment becomes; the others are Apptainer's own.
ENVIRONMENT = "/90-environment.sh"


class Comparison(NamedTuple):
    """What differs between two images.

    packages: (ecosystem, name, version in A, version in B), "" where it is not. sizes: (name, bytes
    in A, bytes in B). labels, environment: lines. files: None where they were not compared. other:
    lines about what stands outside the file system.
    """

    label: str
    a: str
    b: str
    verdict: str
    packages: list[tuple[str, str, str, str]]
    sizes: list[tuple[str, int, int]]
    totals: list[tuple[str, int, int]]
    labels: list[str]
    environment: list[str]
    files: list[Difference] | None
    other: list[str]


def main(arguments: Sequence[str]) -> int:
    """Run the program. Raises LLMError for a user's mistake."""
    parser = argparse.ArgumentParser(prog="diff-image", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--files", action="store_true", help="name every file that differs")
    parser.add_argument("--no-files", action="store_true", help="don't compare the files: faster")
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    options = parser.parse_args(arguments)
    if not options.a or not options.b:
        raise LLMError("two images are needed", "A and B are image files, names or folders",
                       "make diff-image A=llm-cpu B=/path/to/image.sif")
    if options.files and options.no_files:
        raise LLMError("--files and --no-files contradict each other", "one names every file that "
                       "differs, the other compares none", "leave one of them out")
    end_like_ctrl_c()
    pairs, only_a, only_b = pair(options.a, options.b)
    results = [compare(label, a, b, not options.no_files) for label, a, b in pairs]
    same = not only_a and not only_b and all(r.verdict != DIFFERENT for r in results)
    if options.json:
        print(json.dumps({"same": same, "only_in_a": only_a, "only_in_b": only_b,
                          "images": [as_json(result) for result in results]}, indent=1))
    else:
        lines = [line for result in results for line in [*as_text(result, options.files), ""]]
        lines += [f"only in A: {name}" for name in only_a]
        lines += [f"only in B: {name}" for name in only_b]
        print("\n".join(map(escaped, lines)).rstrip())
    return 0 if same else 1


def pair(a: str, b: str) -> tuple[list[tuple[str, str, str]], list[str], list[str]]:
    """Return (label, A's image, B's image) of each pair, and what only A and only B has.

    Raises LLMError for what is no image, and for two folders without an image in common.
    """
    one, other = images_in(a), images_in(b)
    if one is not None and other is not None:
        both = sorted(one.keys() & other.keys())
        if not both:
            raise LLMError(f"'{a}' and '{b}' have no image in common",
                           f"{', '.join(sorted(one))} and {', '.join(sorted(other))}",
                           "name the two image files")
        pairs = [(label, one[label], other[label]) for label in both]
        return pairs, sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())
    paths = ["" if found is not None else choose_image(word, "", "diff-image")
             for word, found in ((a, one), (b, other))]
    label = next(label_of(path) for path in paths if path)
    for number, word, found in ((0, a, one), (1, b, other)):
        if found is not None:
            if label not in found:
                raise LLMError(f"'{word}' holds no image '{label}'",
                               f"it holds {', '.join(sorted(found))}", "name the two image files")
            paths[number] = found[label]
    return [(label, paths[0], paths[1])], [], []


def images_in(word: str) -> dict[str, str] | None:
    """Label -> path of the images in a folder; None for a word that means one image."""
    if not os.path.isdir(word) or os.path.isdir(os.path.join(word, ".singularity.d")):
        return None
    found = images_of_release(word)
    if not found:
        raise LLMError(f"the folder '{word}' holds no images", "they are *.sif files in it or in "
                       "its folder images", "give the path of a .sif file or of a release")
    return found


def label_of(path: str) -> str:
    """`llm-cpu` of the path of an image."""
    stem = os.path.basename(path)
    name, variant, _ = split_name(stem[:-4] if stem.endswith(".sif") else stem)
    return f"{name}-{variant}" if variant else name


def compare(label: str, a: str, b: str, with_files: bool) -> Comparison:
    """Compare two images. with_files: their files too, which unpacks them."""
    files = os.path.isfile(a) and os.path.isfile(b)
    if files and (os.path.samefile(a, b) or filecmp.cmp(a, b, shallow=False)):
        return Comparison(label, a, b, SAME_BYTES, [], [], [], [], [], [], [])
    # Its digest leaves out who signed an image and when.
    same = files and is_sif(Path(a)) and is_sif(Path(b)) and digest_of(a) == digest_of(b)
    other = other_differences(Path(a), Path(b))
    if same:
        return Comparison(label, a, b, SAME_CONTENTS, [], [], [], [], [], [], other)
    lists = read_software(a, "diff-image"), read_software(b, "diff-image")
    if with_files:
        print(f"diff-image: comparing the files of {label}", file=sys.stderr, flush=True)
    found = differences(Path(a), Path(b)) if with_files else None
    packages = components(lists[0]), components(lists[1])
    scripts = [texts(inspect_data(path).get("environment")) for path in (a, b)]
    return Comparison(label, a, b, DIFFERENT, package_changes(*packages), size_changes(*packages),
                      total_changes((a, b), lists), changes_of(labels_of(a), labels_of(b)),
                      script_changes(*scripts), found, other)


def digest_of(image_file: str) -> str:
    """The digest of what an image holds. Raises LLMError for a damaged one."""
    try:
        return sif.payload_digest(image_file)
    except sif.DamagedError as error:
        raise damaged(image_file, str(error)) from None


def package_changes(
    a: Sequence[Component], b: Sequence[Component],
) -> list[tuple[str, str, str, str]]:
    """(ecosystem, name, version in A, version in B) of what was added, removed or changed."""
    one, other = versions_of(a), versions_of(b)
    return [(key[0], key[1], one.get(key, ""), other.get(key, ""))
            for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]


def versions_of(found: Sequence[Component]) -> dict[tuple[str, str], str]:
    """(ecosystem, name and place) -> version; several of the same name are joined."""
    versions: dict[tuple[str, str], list[str]] = {}
    for component in found:
        versions.setdefault((component.ecosystem, component.title), []).append(component.version)
    return {key: ", ".join(sorted(values)) for key, values in versions.items()}


def size_changes(a: Sequence[Component], b: Sequence[Component]) -> list[tuple[str, int, int]]:
    """(name, bytes in A, bytes in B) of each package whose size changed, the most changed first."""
    sizes: list[dict[tuple[str, str], int]] = [{}, {}]
    for found, part in zip((a, b), sizes):
        for component in found:
            key = component.ecosystem, component.title
            part[key] = part.get(key, 0) + component.size
    rows = [(key[1], sizes[0].get(key, 0), sizes[1].get(key, 0))
            for key in sizes[0].keys() | sizes[1].keys()]
    return sorted((row for row in rows if row[1] != row[2]),
                  key=lambda row: (-abs(row[2] - row[1]), row))


def total_changes(
    paths: tuple[str, str], lists: tuple[dict[str, Any], dict[str, Any]],
) -> list[tuple[str, int, int]]:
    """(what, bytes in A, bytes in B) of the image files, their files, and those of no package."""
    one, other = (os.path.getsize(path) if os.path.isfile(path) else 0 for path in paths)
    rows = [("image file", one, other)]
    for what, name in (("all files", BYTES), ("files of no package", "llm:unowned-bytes")):
        one, other = (int(value) if value.isdecimal() else 0 for value in
                      (image_properties(document).get(name, "0") for document in lists))
        rows.append((what, one, other))
    return rows


def changes_of(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Lines about the entries of two tables that differ."""
    lines = []
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            lines.append(f"{key}: {a.get(key, '(none)')} -> {b.get(key, '(none)')}")
    return lines


def script_changes(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Lines that two images' %environment don't share, marked - and +; comments are left out."""
    lines = []
    for key in sorted(key for key in a.keys() | b.keys() if key.endswith(ENVIRONMENT)):
        one, other = ([line.strip() for line in script.get(key, "").splitlines()
                       if line.strip()[:1] not in ("", "#")] for script in (a, b))
        changed = [line for line in difflib.unified_diff(one, other, n=0, lineterm="")
                   if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        lines += [f"{line[0]} {line[1:]}" for line in changed]
    return lines


def counts_of(found: Sequence[Difference]) -> dict[str, int]:
    """How many files were added, removed, changed, and how many differ in time, mode or owner."""
    counts = {"only in A": 0, "only in B": 0, "content": 0, "other": 0}
    for item in found:
        first = next((reason for reason in counts if reason in item.reasons), "")
        if {"type", "link target"} & set(item.reasons):
            first = "content"
        counts[first or "other"] += 1
    return counts


def as_text(result: Comparison, all_files: bool) -> list[str]:
    """A comparison as lines for people."""
    lines = [f"{result.label}", f"  A: {result.a}", f"  B: {result.b}"]
    if result.verdict == SAME_BYTES:
        return [*lines, "  the same bytes"]
    if result.verdict == SAME_CONTENTS:
        signed = any("signature" in line for line in result.other)
        lines.append("  the same contents, signed differently" if signed
                     else "  the same contents; the files differ in their ids or dates only")
        return [*lines, *(f"    {line}" for line in result.other)]
    for title, rows in packages_as_text(result.packages):
        lines += [f"  {title}", *(f"    {row}" for row in rows)]
    if not result.packages:
        lines.append("  packages: the same versions")
    lines.append("  bytes")
    changes = [*result.totals, *result.sizes[:MOST_ROWS]]
    lines += [f"    {human(one):>10} -> {human(other):>10}  {human(other - one):>11}  {name}"
              for name, one, other in changes]
    if len(result.sizes) > MOST_ROWS:
        lines.append(f"    … and {len(result.sizes) - MOST_ROWS} packages more (--json has all)")
    for title, rows in (("labels", result.labels), ("environment", result.environment),
                        ("outside the file system", result.other)):
        if rows:
            lines += [f"  {title}", *(f"    {row}" for row in rows)]
    if result.files is not None:
        counts = counts_of(result.files)
        lines.append(f"  files: {counts['only in B']} added, {counts['only in A']} removed, "
                     f"{counts['content']} changed, {counts['other']} with another time, mode, "
                     "owner or order")
        shown = [item for item in result.files if all_files]
        lines += [f"    {item}" for item in shown]
    return lines


def packages_as_text(
    packages: Sequence[tuple[str, str, str, str]],
) -> list[tuple[str, list[str]]]:
    """Titles such as `Python: changed` with their rows."""
    found: dict[str, list[str]] = {}
    for ecosystem, name, one, other in packages:
        kind = "added" if not one else "removed" if not other else "changed"
        row = f"{name} {one} -> {other}" if kind == "changed" else f"{name} {one or other}"
        found.setdefault(f"{ecosystem}: {kind}", []).append(row)
    return sorted(found.items())


def as_json(result: Comparison) -> dict[str, Any]:
    """A comparison as one object."""
    return {
        "label": result.label, "a": result.a, "b": result.b, "verdict": result.verdict,
        "packages": [{"ecosystem": ecosystem, "name": name, "a": one or None, "b": other or None}
                     for ecosystem, name, one, other in result.packages],
        "sizes": [{"name": name, "a_bytes": one, "b_bytes": other}
                  for name, one, other in result.sizes],
        "totals": [{"name": name, "a_bytes": one, "b_bytes": other}
                   for name, one, other in result.totals],
        "labels": result.labels, "environment": result.environment, "other": result.other,
        "files": None if result.files is None else [
            {"path": item.path, "reasons": list(item.reasons)} for item in result.files],
    }
