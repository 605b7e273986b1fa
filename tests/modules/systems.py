"""Real Environment Modules, real Lmod, zsh and tcsh, in a private folder: nothing is installed.

    python3 tests/modules/systems.py

fetches the packages of the host's own Debian release, unpacks them and prints where each is. Debian
lets only one of the two module systems be installed; here both lie side by side, and an ordinary
user can have them. Raises LLMError where there is no Debian archive to take them from.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bin"))

from _llm.debian import PrivateApt, host_archives, unpack
from _llm.errors import LLMError
from _llm.fetch import fetch_file
from _llm.setup import TOOLS, cache_folder

# With what they need and not every Debian has. Asked for by name: the two module systems exclude
# each other, so no installation can be planned that has both.
PACKAGES = (
    *("environment-modules", "libtcl8.6", "tcl8.6"),
    *("lmod", "libreadline8", "lua-bit32", "lua-filesystem", "lua-json", "lua-lpeg", "lua-posix"),
    *("lua-term", "lua5.3"),
    *("zsh", "zsh-common", "libcap2", "tcsh", "libcrypt1", "bash-completion"),
)
# Paths in scripts that lead to the folder instead.
OWN_PATHS = re.compile(
    rb"(?<![\w/.-])/(?=usr/share/(?:modules|lmod|lua|tcltk|zsh|bash-completion)\b"
    rb"|usr/lib/x86_64-linux-gnu/(?:modulecmd|lua|libtcl|zsh)|usr/bin/(?:tclsh|lua5)"
    rb"|etc/(?:lmod|environment-modules)\b)"
)
PROGRAMS = ("tclsh8.6", "lua5.3", "zsh", "tcsh")
# Bumped when unpacking changes.
GENERATION = 4


def ensure_systems() -> Path:
    """Return the folder with both module systems and the shells, unpacked when it is not there.

    Programs are in `bin`, files as in a Debian root beside it.
    """
    parent = TOOLS if not re.search(r"\s", str(TOOLS)) else cache_folder() / ".tools"
    archives = host_archives()
    if not archives or os.uname().machine != "x86_64":
        raise LLMError("no Debian archive to take Environment Modules and Lmod from")
    folder = parent / f"modules-{archives[0].suite}-{GENERATION}"
    if folder.exists():
        return folder
    part = parent / f".modules-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    apt = PrivateApt(TOOLS / "apt" / archives[0].suite, archives)
    apt.update()
    cache = cache_folder() / "debian"
    for line in apt.run("apt-get", "download", "--print-uris", *PACKAGES).splitlines():
        uri, name, _, digest = line.split()
        sha256 = digest.partition("SHA256:")[2]
        unpack(fetch_file(uri.strip("'"), sha256, cache / sha256[:2] / f"{sha256}.deb",
                          what=f"Debian package {name}", gone="the mirror is being updated"), part)
    relocate(part, folder)
    try:
        part.rename(folder)
    except OSError:  # another run was faster
        shutil.rmtree(part)
    return folder


def relocate(part: Path, folder: Path) -> None:
    """Let the files in `part` work when they lie in `folder`."""
    for path in part.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if data[:4] != b"\x7fELF" and OWN_PATHS.search(data):
                path.write_bytes(OWN_PATHS.sub(os.fsencode(folder) + b"/", data))
    libraries = f"{folder}/usr/lib/x86_64-linux-gnu:{folder}/lib/x86_64-linux-gnu"
    (part / "bin").mkdir(exist_ok=True)
    for name in PROGRAMS:
        places = [part / "usr/bin" / name, part / "bin" / name]
        source = next(place for place in places if place.exists())
        program = part / "programs" / name
        program.parent.mkdir(exist_ok=True)
        source.resolve().rename(program)
        for place in places:
            place.unlink(missing_ok=True)
            place.write_text(
                "#!/bin/sh\n"
                # Compiled into Tcl's library; a host without Tcl has nothing there.
                f"export TCL_LIBRARY={folder}/usr/share/tcltk/tcl8.6\n"
                f"exec /lib64/ld-linux-x86-64.so.2 --library-path {libraries} "
                f'--argv0 {folder}/bin/{name} {folder}/programs/{name} "$@"\n'
            )
            place.chmod(0o755)
    (part / "usr/bin/tclsh").symlink_to("tclsh8.6")


if __name__ == "__main__":
    print(ensure_systems())
