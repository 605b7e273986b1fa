"""An image's software as its list says it; read from its files where it carries no list."""

from __future__ import annotations

import json
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from _llm import sif
from _llm.contents.choose import is_list
from _llm.contents.trees import is_sif
from _llm.contents.unsquash import damaged, unpacked
from _llm.errors import LLMError
from _llm.images.sbom import BYTES, make_sbom
from _llm.lookup import split_name

ECOSYSTEMS = {"deb": "Debian", "pypi": "Python", "generic": "other"}
LARGEST_LIST = 256 << 20


class Component(NamedTuple):
    """One package of a list.

    kind: deb, pypi, generic, of its URL. source, source_version: Debian's source package.
    licences: SPDX expressions and names. size: installed bytes. place: "" unless it is a part of
    another package.
    """

    kind: str
    name: str
    version: str
    source: str
    source_version: str
    licences: tuple[str, ...]
    size: int
    place: str

    @property
    def title(self) -> str:
        """Its name, and where it lies if it is a part of another package."""
        return f"{self.name} (in {self.place})" if self.place else self.name

    @property
    def ecosystem(self) -> str:
        """Debian, Python or other."""
        return ECOSYSTEMS.get(self.kind, self.kind)


def read_software(image_file: str, program: str) -> dict[str, Any]:
    """Return the list of an image, or of a .cdx.json file; made from its files where it has none.

    program: who asks, for the note that this takes a while. Raises LLMError for a damaged image.
    """
    data = Path(image_file).read_bytes() if is_list(image_file) else list_of(image_file, program)
    return load_list(data, image_file)


def list_of(image_file: str, program: str) -> bytes:
    """The list that an image carries, made from its files where it carries none."""
    data = list_in(image_file)
    if data is None:
        print(f"{program}: note: {image_file} carries no list of its software; reading its files",
              file=sys.stderr)
        data = list_from_files(image_file)
    return data


def list_in(image_file: str) -> bytes | None:
    """The list that an image carries, None where it carries none. Raises LLMError if damaged."""
    if not is_sif(Path(image_file)):
        return None
    try:
        for item in sif.read_objects(image_file):
            if item.type == sif.SBOM:
                if item.size > LARGEST_LIST:
                    raise damaged(image_file, f"its list of software has {item.size} bytes")
                return sif.read_object(image_file, item)
    except sif.DamagedError as error:
        raise damaged(image_file, str(error)) from None
    return None


def list_from_files(image_file: str) -> bytes:
    """Make the list of an image from its files."""
    labels = labels_of(image_file)
    name, variant, _ = split_name(Path(image_file).stem)
    label = labels.get("org.opencontainers.image.title", name)
    variant = labels.get("llm.variant", variant)
    with unpacked(image_file) as tree:
        return make_sbom(tree, f"{label}-{variant}" if variant else label,
                         labels.get("llm.digest", ""), labels.get("llm.lock-date", ""))


def load_list(data: bytes, where: str) -> dict[str, Any]:
    """Parse a list. Raises LLMError for what is no CycloneDX JSON."""
    try:
        document = json.loads(data.decode("utf-8"))
        if document["bomFormat"] != "CycloneDX":
            raise ValueError("its bomFormat is not CycloneDX")
        if not isinstance(document.get("components", []), list):
            raise ValueError("its components are no list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LLMError(f"{where}: its list of software can't be read",
                       f"it is no CycloneDX JSON: {error}",
                       "use the file that `make sbom` wrote, or build the image again") from None
    assert isinstance(document, dict)
    return document


def components(document: Mapping[str, Any]) -> list[Component]:
    """The packages of a list in its order; what has no package URL is none."""
    found = []
    for entry in document.get("components", []):
        if not isinstance(entry, dict) or not str(entry.get("purl", "")).startswith("pkg:"):
            continue
        facts = properties_of(entry)
        name, version = str(entry.get("name", "")), str(entry.get("version", ""))
        size = facts.get(BYTES, "0")
        found.append(Component(
            urllib.parse.unquote(str(entry["purl"])[4:].split("/")[0]), name, version,
            facts.get("llm:source-package", name), facts.get("llm:source-version", version),
            tuple(licences_of(entry)), int(size) if size.isdecimal() else 0,
            facts.get("llm:place", "")))
    return found


def licences_of(entry: Mapping[str, Any]) -> list[str]:
    """Licences of a component: expressions, ids and names alike."""
    found = []
    licences = entry.get("licenses")
    for choice in licences if isinstance(licences, list) else []:
        if isinstance(choice, dict):
            licence = choice.get("license")
            words = [choice.get("expression")]
            if isinstance(licence, dict):
                words += [licence.get("id"), licence.get("name")]
            found += [word for word in words if isinstance(word, str) and word]
    return found


def properties_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """A component's properties."""
    values = entry.get("properties")
    return {str(item.get("name")): str(item.get("value", ""))
            for item in (values if isinstance(values, list) else []) if isinstance(item, dict)}


def image_properties(document: Mapping[str, Any]) -> dict[str, str]:
    """Properties of the image itself."""
    metadata = document.get("metadata")
    image = metadata.get("component") if isinstance(metadata, dict) else None
    return properties_of(image) if isinstance(image, dict) else {}


def inspect_data(image_file: str) -> dict[str, Any]:
    """What `apptainer inspect` reads: labels, environment, scripts; empty where there is none."""
    try:
        if Path(image_file).is_dir():
            text = (Path(image_file) / ".singularity.d/labels.json").read_bytes()
            return {"labels": json.loads(text.decode())}
        if not is_sif(Path(image_file)):
            return {}
        for item in sif.read_objects(image_file):
            if item.type == sif.JSON and item.name == "inspect-metadata.json":
                attributes = json.loads(sif.read_object(image_file, item))["data"]["attributes"]
                return attributes if isinstance(attributes, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, sif.DamagedError):
        return {}
    return {}


def labels_of(image_file: str) -> dict[str, str]:
    """An image's labels."""
    return texts(inspect_data(image_file).get("labels"))


def texts(value: object) -> dict[str, str]:
    """The entries of a JSON object whose values are texts; empty for anything else."""
    if not isinstance(value, dict):
        return {}
    return {str(key): text for key, text in value.items() if isinstance(text, str)}
