"""Print or write the list of an image's software, CycloneDX JSON: what `make sbom` calls.

    sh bin/_llm/tool.sh sbom --image llm --variant cpu
    sh bin/_llm/tool.sh sbom /path/to/image.sif --output image.cdx.json
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from _llm.contents.choose import add_choice, choose, is_list
from _llm.contents.software import list_of, load_list
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
    if is_list(image_file):
        raise LLMError(f"{image_file} is a list of software already", "sbom reads an image",
                       "make sbom IMAGE=llm VARIANT=cpu")
    data = list_of(image_file, "sbom")
    load_list(data, image_file)
    if output:
        try:
            write_text(output, data.decode("utf-8"))
        except OSError as error:
            raise LLMError(f"'{output}' can't be written", error.strerror or str(error),
                           "OUTPUT names a file in a folder of yours, with room") from None
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
    if folder == "/dev" or (os.path.exists(output) and not os.path.isfile(output)):
        raise LLMError(f"'{output}' is no place for a file",
                       "a device or a pipe would be replaced by a file",
                       "without OUTPUT the list is printed: make -s sbom > FILE")
    if not os.path.isdir(folder):
        raise LLMError(f"there is no folder '{folder}'", "OUTPUT is to be written there",
                       f"mkdir -p '{folder}'")
