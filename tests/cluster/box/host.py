"""What the box takes from the project on this machine: where images and Apptainer are."""

from __future__ import annotations

import os
import sys

from box.settings import CHECKOUT

sys.path.insert(0, str(CHECKOUT / "bin"))

from _llm.apptainer import find_apptainer
from _llm.errors import LLMError
from _llm.settings import load_settings


def user_folders() -> tuple[str, str]:
    """Return the folders of the images and of a private Apptainer, "" where there is none."""
    values = load_settings(os.environ, str(CHECKOUT), "default")
    images = values.get("container", "image_dir")
    try:
        program = find_apptainer(os.environ, str(CHECKOUT)).path
    except LLMError:
        program = ""
    # A private Apptainer is a folder with usr/bin/apptainer in it; one in /usr/bin is there anyway.
    folder = os.path.realpath(program).partition("/usr/")[0]
    return images if os.path.isdir(images) else "", folder
