"""Check an image's signature, and say who signed it and what its digest is.

    make verify IMAGE=base KEY=site.pub
    make verify IMAGE=llm VARIANT=cpu          # with the keys of the site profile
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from _llm import setup
from _llm.errors import LLMError
from _llm.image import HOME, end_like_ctrl_c
from _llm.settings import load_settings
from _llm.sif import payload_digest
from _llm.signing.check import verify
from _llm.signing.keys import day, load_keys
from _llm.signing.sign import add_image_options, image_file


def main(arguments: Sequence[str]) -> int:
    """Check one image. Raises LLMError for a user's mistake and for a signature that fails."""
    parser = argparse.ArgumentParser(prog="verify", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_image_options(parser)
    parser.add_argument("--key", "--certificate", default="", help="a file with a public key: PEM, "
                        "an X.509 certificate, or an exported PGP key; empty: the site profile's")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    settings = load_settings(os.environ, str(HOME))
    paths = settings.items("container", "keys")
    if options.key:
        paths = [os.path.expanduser(options.key)]
    if not paths:
        raise LLMError("which key is the signature to be checked with?",
                       f"no key is given, and [container] keys of the site profile "
                       f"'{settings.site}' names none", "make verify KEY=site.pub")
    keys = load_keys(paths)
    path = image_file(options.image, options.variant)
    found = verify(setup.ensure_apptainer(), path, keys)
    print(f"{path}\n  signed by   {found.signer}\n  key         {found.fingerprint}"
          f"\n  on          {day(found.created)}"
          + (f"\n  key ends    {day(found.expires)}" if found.expires else "")
          + f"\n  digest      {payload_digest(path)}")
    return 0
