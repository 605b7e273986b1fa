"""Print or write the list of an image's software, CycloneDX JSON: what `make sbom` calls.

    sh bin/_llm/tool.sh sbom --image llm --variant cpu
    sh bin/_llm/tool.sh sbom /path/to/image.sif --output image.cdx.json
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from _llm.contents.choose import add_choice, choose
from _llm.contents.software import list_from_files, list_in, load_list
from _llm.errors import LLMError
from _llm.files import write_text
from _llm.image import end_like_ctrl_c


def main(arguments: Sequence[str]) -> int:
    """Run the program. Raises LLMError for a user's mistake."""
    parser = argparse.ArgumentParser(prog="sbom", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_choice(parser)
    parser.add_argument("--output", default="", metavar="PATH", help="file to write; empty: print")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    output = os.path.expanduser(options.output)
    check_output(output)
    image_file = choose(options, "sbom")
    if image_file.endswith(".json"):
        raise LLMError(f"{image_file} is a list of software already", "sbom reads an image",
                       "make sbom IMAGE=llm VARIANT=cpu")
    data = list_in(image_file)
    if data is None:
        print(f"sbom: note: {image_file} carries no list of its software; reading its files",
              file=sys.stderr)
        data = list_from_files(image_file)
    load_list(data, image_file)
    if output:
        write_text(output, data.decode("utf-8"))
    else:
        sys.stdout.buffer.write(data)
    return 0


def check_output(output: str) -> None:
    """Refuse an output that can't be a file before anything is read."""
    if not output:
        return
    folder = os.path.dirname(os.path.abspath(output))
    if os.path.isdir(output):
        raise LLMError(f"'{output}' is a folder", "OUTPUT names the file to write",
                       f"OUTPUT={os.path.join(output, 'image.cdx.json')}")
    if not os.path.isdir(folder):
        raise LLMError(f"there is no folder '{folder}'", "OUTPUT is to be written there",
                       f"mkdir -p '{folder}'")


def read_sbom(image_file: str) -> dict[str, Any]:
    """Return the list that an image carries.

    Raises LLMError for an image without one, for a damaged image and for a list that is no
    CycloneDX JSON.
    """
    data = list_in(image_file)
    if data is None:
        raise LLMError(f"{image_file} carries no list of its software",
                       "images built before version 0.2, and others' images, have none",
                       "build it again; `make sbom` makes the list from the image's files")
    return load_list(data, image_file)
