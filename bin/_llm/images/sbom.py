"""The list of an image's software as CycloneDX JSON: the same bytes for the same tree.

    PYTHONPATH=bin python3 -c 'from pathlib import Path; from _llm.images.sbom import make_sbom
    print(make_sbom(Path("sandbox"), "llm-cpu", 64 * "0", "2026-11-22").decode())'

Format: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

from _llm.images.licences import as_cyclonedx
from _llm.images.packages import Package, clean, os_release, python_name, read_packages
from _llm.images.tree import Tree, total_size

SPEC_VERSION = "1.6"
BYTES = "llm:installed-bytes"


def make_sbom(tree: Path, label: str, inputs_digest: str, day: str) -> bytes:
    """Return the list of the software in an unpacked image.

    tree: the image's files, all readable. label: such as `llm-cpu`. inputs_digest: hexadecimal.
    day: of the locks, as `2026-11-22`; no time is written where it is none.
    """
    packages = unique(read_packages(tree))
    files = Tree(tree)
    total = total_size(files)
    owned = sum(package.size for package in packages)
    image = {
        "type": "container", "bom-ref": f"image:{label}", "name": label,
        "version": inputs_digest[:12],
        "properties": properties({BYTES: total, "llm:inputs-digest": inputs_digest,
                                  "llm:unowned-bytes": total - owned}),
    }
    metadata: dict[str, object] = {"component": image}
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", day):
        metadata["timestamp"] = f"{day}T00:00:00Z"
    system = operating_system(files)
    document: dict[str, object] = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX", "specVersion": SPEC_VERSION,
        "version": 1, "metadata": metadata,
        "components": [*system, *(component(p) for p in packages)],
        "dependencies": dependencies(packages, f"image:{label}"),
    }
    # Another list has another number.
    number = uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(encoded(document)).hexdigest())
    return encoded({**document, "serialNumber": f"urn:uuid:{number}"}) + b"\n"


def encoded(document: dict[str, object]) -> bytes:
    """A document as JSON, the same bytes for the same content."""
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    return text.encode("utf-8", "replace")


def unique(packages: Sequence[Package]) -> list[Package]:
    """The packages without a second one of the same reference, which the format forbids."""
    return list({package.reference: package for package in reversed(packages)}.values())[::-1]


def component(package: Package) -> dict[str, object]:
    """One package as a component."""
    found: dict[str, object] = {
        "type": "application" if package.kind == "generic" else "library",
        "bom-ref": package.reference, "name": clean(package.name),
        "version": clean(package.version), "purl": package.purl,
    }
    if package.description:
        found["description"] = clean(package.description)
    if package.supplier:
        found["supplier"] = supplier(clean(package.supplier))
    if package.licences:
        found["licenses"] = as_cyclonedx(clean(licence) for licence in package.licences)
    if package.hashes:
        found["hashes"] = [{"alg": "SHA-256", "content": digest} for digest in package.hashes]
    found["properties"] = properties({
        BYTES: package.size, "llm:source-package": clean(package.source),
        "llm:source-version": clean(package.source_version), "llm:place": package.place})
    return found


def supplier(text: str) -> dict[str, object]:
    """`Name <address>` as an organization; the address is left out unless it is one."""
    found = re.fullmatch(r"(.*?)\s*<([^<>\s]+@[^<>\s@]+)>", text)
    if not found:
        return {"name": text}
    name, address = found.groups()
    named = {"name": name.strip("\"' ") or address}
    if re.fullmatch(r"[A-Za-z0-9._+-]+@[A-Za-z0-9.-]+", address):
        return {**named, "contact": [{"email": address}]}
    return dict(named)


def operating_system(files: Tree) -> list[dict[str, object]]:
    """The distribution, by which scanners find advisories; its packages are counted themselves."""
    release = os_release(files)
    name, version = release.get("ID", ""), release.get("VERSION_ID", "")
    if not name:
        return []
    return [{"type": "operating-system", "bom-ref": f"os:{name}", "name": name,
             "version": version, "description": release.get("PRETTY_NAME") or name,
             "properties": properties({BYTES: 0})}]


def dependencies(packages: Sequence[Package], image: str) -> list[dict[str, object]]:
    """What needs what, among the packages that are there; the image needs them all."""
    by_name: dict[tuple[str, str], str] = {}
    for package in packages:
        if not package.place:
            for name in package.provides:
                by_name.setdefault((package.kind, name), package.reference)
    for package in packages:
        if not package.place:
            name = python_name(package.name) if package.kind == "pypi" else package.name
            by_name[package.kind, name] = package.reference
    found: list[dict[str, object]] = []
    for package in packages:
        needed = set()
        for names in package.needs:
            there = [by_name[package.kind, n] for n in names if (package.kind, n) in by_name]
            needed.update(there[:1])
        needed.discard(package.reference)
        entry: dict[str, object] = {"ref": package.reference}
        found.append({**entry, "dependsOn": sorted(needed)} if needed else entry)
    whole: dict[str, object] = {"ref": image, "dependsOn": sorted(p.reference for p in packages)}
    return sorted([whole, *found], key=lambda entry: str(entry["ref"]))


def properties(values: dict[str, object]) -> list[dict[str, str]]:
    """A component's properties, those without a value left out."""
    return [{"name": name, "value": str(value)} for name, value in sorted(values.items())
            if value != ""]
