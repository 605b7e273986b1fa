"""The folders and files of the host that a program gets to see, and where it starts."""

from __future__ import annotations

import os
import stat

from _llm.binds import Bind, Binds, belongs_to_image, is_inside, parse_bind, parse_one
from _llm.environment import CACHES_OF_USERS, CERTIFICATES, set_cache_folders
from _llm.errors import LLMError
from _llm.values import user_home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _llm.settings import Settings

# Where the recipes appear when their own path has a colon, which PYTHONPATH cannot express.
RECIPES_IN_IMAGE = "/mnt/llm-recipes"
PIP_CONFIGURATION = "/etc/pip.conf"


def working_directory(
    env: Mapping[str, str], explicit: Sequence[Bind], in_user_namespace: bool = False
) -> str:
    """Return the path of the working directory, by the links that the user went through.

    explicit: the binds asked for, one of which may put it there. in_user_namespace: Apptainer runs
    in one, where root may no more than others. Raises LLMError when the folder is gone, closed, or
    one of the image's own: Apptainer would go to the home folder without a word.
    """
    try:
        cwd = os.getcwd()
    except OSError as error:
        raise LLMError(
            "the working directory does not exist any more",
            error.strerror or str(error),
            'cd "$HOME", or to where the program should run',
        ) from None
    logical = env.get("PWD", "")
    if logical.startswith("/") and logical != cwd and _same(logical, cwd):
        cwd = os.path.normpath(logical) if ".." not in logical.split("/") else cwd
    if any(is_inside(cwd, bind.target) for bind in explicit):
        return cwd
    if belongs_to_image(os.path.realpath(cwd)):
        raise LLMError(
            f"the working directory {cwd} cannot be shown in the image",
            "the image has a folder of its own there, with its own programs",
            "cd to a folder of yours and start the command there",
        )
    is_powerless_root = in_user_namespace and os.geteuid() == 0
    if not os.access(cwd, os.X_OK) or (is_powerless_root and not _lets_root_in(cwd)):
        raise LLMError(
            f"the working directory {cwd} cannot be shown in the image",
            "you may not enter it, or one of the folders above it",
            "cd to a folder of yours and start the command there",
        )
    return cwd


def _same(first: str, second: str) -> bool:
    try:
        return os.path.samestat(os.stat(first), os.stat(second))
    except OSError:
        return False


def _lets_root_in(path: str) -> bool:
    """Say whether the permissions alone, without root's power to ignore them, let root in."""
    while True:
        status = os.stat(path)
        allowed = 0o100 if status.st_uid == 0 else 0o010 if status.st_gid == 0 else 0o001
        if not status.st_mode & allowed:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def home_folder(env: Mapping[str, str]) -> str:
    """Return the user's home folder, "/" for none. Raises LLMError for one that cannot be shown."""
    user = user_home(env)
    if ":" in user:
        raise LLMError(
            f"the home folder {user} cannot be shown in the image",
            "its path has a colon, which Apptainer cannot express",
            "export HOME=/another/folder",
        )
    if user != "/" and (belongs_to_image(user) or belongs_to_image(os.path.realpath(user))):
        raise LLMError(
            f"the home folder {user} cannot be shown in the image",
            "the image has a folder of its own there, with its own programs",
            "export HOME=/another/folder",
        )
    return user


def cache_folder(settings: Settings, user: str) -> str:
    """Return the user's cache folder and make it if need be.

    user: the home folder, which is not made. Raises LLMError when the folder cannot be made.
    """
    folder = settings.get("paths", "cache")
    if is_inside(folder, user) and not os.path.isdir(user):
        raise LLMError(
            f"the home folder {user} does not exist on this node",
            f"the cache folder {folder} would be below it",
            "export LLM_CACHE_DIR=/path/with/room",
        )
    _make_cache_folder(folder, settings.origin("paths", "cache"), "LLM_CACHE_DIR")
    return folder


def local_folder(settings: Settings) -> str:
    """Return a folder of this user alone on a disk of this node, and make it if need be.

    Programs run code from it (compilers' caches), and /tmp is everybody's: whatever another user
    could have put there is refused. Raises LLMError then.
    """
    parent = settings.get("paths", "local")
    parent = parent if os.path.isdir(parent) else "/tmp"
    folder = os.path.join(parent, f"llm-{os.getuid()}")
    try:
        status = os.lstat(folder)
    except OSError:
        status = None
    try:
        if status is None:
            os.mkdir(folder, 0o700)
            return folder
    except FileExistsError:  # another rank of this user was faster
        status = os.lstat(folder)
    except OSError as error:
        raise LLMError(
            f"the node-local folder {folder} cannot be made",
            error.strerror or str(error),
            "choose another one: export LLM_LOCAL_DIR=/path/on/this/node",
        ) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise LLMError(
            f"{folder} cannot be trusted",
            "it is no folder, or others own it or may write to it; programs would run code from it",
            f"rm -r '{folder}', or: export LLM_LOCAL_DIR=/path/on/this/node",
        )
    return folder


def make_cache_folders(env: Mapping[str, str], user: str) -> None:
    """Make the cache folders that the user has set: what does not exist cannot be shown.

    user: the home folder, which is shown as it is. Raises LLMError when one cannot be made.
    """
    for name in CACHES_OF_USERS:
        folder = env.get(name, "")
        if name == "HF_TOKEN_PATH" or not folder.startswith("/") or belongs_to_image(folder):
            continue
        if user != "/" and is_inside(folder, user):
            continue
        _make_cache_folder(folder, f"environment variable {name}", name)


def _make_cache_folder(folder: str, origin: str, variable: str) -> None:
    """Make a folder. `origin` says where its path comes from, `variable` names another one."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise LLMError(
            f"the cache folder {folder} cannot be made",
            f"{error.strerror} (from the {origin})",
            f"choose another one: export {variable}=/path/with/room",
        ) from None


def show_folders(
    settings: Settings,
    env: Mapping[str, str],
    home: str,
    user: str,
    cwd: str,
    cache: str,
    local: str,
) -> Binds:
    """Return the binds of every folder that exists and is no folder of the image itself.

    home: the checkout or installation. user: the user's home folder, which Apptainer's --home
    shows; here it only keeps folders below it from being bound again. Raises LLMError when a cache
    folder that the user has set cannot be made.
    """
    make_cache_folders(env, user)
    binds = Binds()
    if user != "/":
        binds.shown.append(Bind(user, user))
        binds.show(os.path.realpath(user))
    # An installation in /opt/llm or /usr/share must not hide what the image has there.
    own = belongs_to_image(os.path.realpath(home))
    code = [os.path.join(name, "recipes") if own else name for name in names_of_home(home, env)]
    folders = [cwd, *code, cache, local]
    folders += [settings.get("paths", key) for key in ("data", "scratch", "ramdisk")]
    folders += [env.get("TMPDIR", ""), *set_cache_folders(env)]
    wanted = [(folder, True) for folder in settings.items("paths", "models")]
    for folder in folders:
        if folder.startswith("/") and (folder in code or not belongs_to_image(folder)):
            wanted.append((folder, False))
    # A mount hides what an earlier one put below it, so parents come first: models below data stay
    # read-only, and a working directory below the models stays writable.
    for folder, read_only in sorted(wanted, key=lambda item: os.path.realpath(item[0]).count("/")):
        binds.show(folder, read_only)
    for text in settings.items("paths", "binds"):
        if parse_one(text):
            for bind in parse_bind(text):
                binds.add(bind)
    return binds


def names_of_home(home: str, env: Mapping[str, str]) -> list[str]:
    """Return `home` and the other names by which users know it.

    `make install` makes PREFIX/0.1.0 a link to a folder of PREFIX/.versions; LLM_HOME of the module
    may go through more links.
    """
    builds, build = os.path.split(home)
    names = [home, env.get("LLM_HOME", "")]
    if os.path.basename(builds) == ".versions":
        names.append(os.path.join(os.path.dirname(builds), build.rpartition("-")[0]))
    return [name for name in names if name == home or (name and os.path.realpath(name) == home)]


def show_files(binds: Binds, env: Mapping[str, str]) -> list[str]:
    """Bind certificates and pip's site configuration; return the variables that must not pass.

    A variable that names something which does not exist breaks every program that reads it.
    """
    dropped = []
    for name in CERTIFICATES:
        path = env.get(name, "")
        if not path:
            continue
        # A folder of certificates is full of links into other folders of the host.
        own_folder = os.path.isdir(path) and belongs_to_image(os.path.realpath(path))
        if own_folder or not path.startswith("/") or not os.path.exists(path):
            dropped.append(name)
        else:
            binds.show_file(path)
    tmpdir = env.get("TMPDIR", "")
    if tmpdir and not os.path.isdir(tmpdir):
        dropped.append("TMPDIR")
    if os.path.exists(PIP_CONFIGURATION):
        binds.show_file(PIP_CONFIGURATION)
        certificate = _certificate_of_pip()
        if certificate and "PIP_CERT" not in env:
            binds.show_file(certificate)
    return dropped


def _certificate_of_pip() -> str:
    try:
        with open(PIP_CONFIGURATION, encoding="utf-8", errors="replace") as file:
            pairs = [line.partition("=") for line in file]
    except OSError:
        return ""
    paths = [value.strip() for key, _, value in pairs if key.strip() == "cert"]
    return paths[0] if paths and os.path.isfile(paths[0]) else ""


def recipes_path(binds: Binds, home: str) -> str:
    """Return the folder for PYTHONPATH, so that `from llm_recipes import ...` works anywhere."""
    recipes = os.path.join(home, "recipes")
    if ":" not in recipes or not os.path.isdir(recipes):
        return recipes
    binds.add(Bind(os.path.realpath(recipes), RECIPES_IN_IMAGE))
    return RECIPES_IN_IMAGE
