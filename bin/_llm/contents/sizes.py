"""How many bytes each package takes in an image: what `make sizes` calls.

    sh bin/_llm/tool.sh sizes --image llm --variant cpu --top 20

Bytes are those of the unpacked files, each counted for one package; an image file has about 30 %
of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence

from _llm.contents.choose import add_choice, choose
from _llm.contents.software import Component, components, image_properties, read_software
from _llm.errors import LLMError
from _llm.image import end_like_ctrl_c
from _llm.printable import escaped


def main(arguments: Sequence[str]) -> int:
    """Run the program. Raises LLMError for a user's mistake."""
    parser = argparse.ArgumentParser(prog="sizes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_choice(parser)
    parser.add_argument("--top", type=int, default=0, metavar="N", help="the N biggest; 0: all")
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    options = parser.parse_args(arguments)
    if options.top < 0:
        raise LLMError(f"--top {options.top} is no number of packages", "it is 0 or more",
                       "--top 20, or --top 0 for all")
    end_like_ctrl_c()
    image_file = choose(options, "sizes")
    document = read_software(image_file, "sizes")
    found = biggest_first(components(document))
    facts = image_properties(document)
    rest = facts.get("llm:unowned-bytes", "0")
    unowned = int(rest) if rest.isdecimal() else 0
    top = found[:options.top] if options.top else found
    totals = totals_of(found)
    whole = sum(totals.values()) + unowned
    if options.json:
        print(json.dumps({
            "image": image_file, "bytes": whole, "unowned_bytes": unowned,
            "ecosystems": [{"name": name, "bytes": size} for name, size in totals.items()],
            "packages": [{"name": c.name, "version": c.version, "ecosystem": c.ecosystem,
                          "bytes": c.size, **({"place": c.place} if c.place else {})}
                         for c in top]}, indent=1))
        return 0
    print(f"{image_file}")
    names = [escaped(f"{c.title} {c.version}") for c in top]
    width = max([len(name) for name in names] or [1])
    for component, name in zip(top, names):
        print(f"{human(component.size):>10}  {name:<{width}}  {component.ecosystem}")
    if len(top) < len(found):
        print(f"{human(sum(c.size for c in found[len(top):])):>10}  "
              f"{len(found) - len(top)} more")
    print()
    for name, size in totals.items():
        count = sum(c.ecosystem == name for c in found)
        print(f"{human(size):>10}  {name}: {count} package{'s' if count != 1 else ''}")
    print(f"{human(unowned):>10}  files of no package")
    print(f"{human(whole):>10}  in all")
    return 0


def biggest_first(found: Iterable[Component]) -> list[Component]:
    """The packages by size; equal ones by name."""
    return sorted(found, key=lambda c: (-c.size, c.kind, c.name, c.version, c.place))


def totals_of(found: Iterable[Component]) -> dict[str, int]:
    """Ecosystem -> bytes, the biggest first."""
    totals: dict[str, int] = {}
    for component in found:
        totals[component.ecosystem] = totals.get(component.ecosystem, 0) + component.size
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def human(size: int) -> str:
    """Bytes with a unit that people read; a difference may be negative."""
    value, sign = float(abs(size)), "-" if size < 0 else ""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{sign}{value:.0f} {unit}" if unit == "B" else f"{sign}{value:.1f} {unit}"
        value /= 1024
    return f"{sign}{value:.2f} GiB"
