"""Which variables of the host reach the program, and which ones llm-run sets for it.

Everything passes except what is known to break programs in an image: another Python's paths, other
libraries, somebody else's ranks, the options of another container start.
"""

from __future__ import annotations

import os

from _llm.commit import has_changes, read_commit
from _llm.lookup import is_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from _llm.lookup import Image
    from _llm.options import Options
    from _llm.settings import Settings

DROPPED = frozenset(
    [
        # Another Python's modules and packages.
        *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONNOUSERSITE"),
        *("PYTHONEXECUTABLE", "PYTHONPLATLIBDIR", "PYTHONPYCACHEPREFIX"),
        *("VIRTUAL_ENV", "_CE_CONDA", "_CE_M"),
        *("PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PIP_CONSTRAINT"),
        # Other libraries, other start-up files.
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT", "BASH_ENV", "ENV"),
        # A folder of the login session that no image shows; without it programs use TMPDIR.
        "XDG_RUNTIME_DIR",
        # What an earlier launcher left behind. A launcher that starts now sets its own inside.
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"),
        *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "ROLE_NAME", "NODE_RANK"),
        *("MASTER_ADDR", "MASTER_PORT"),
    ]
)
DROPPED_BEGINNINGS = (
    "CONDA_",
    "MAMBA_",
    "BASH_FUNC_",
    "TORCHELASTIC_",
    "PET_",
    "APPTAINER",
    "SINGULARITY",
)
# Of MPI's launchers: what finds them believes in their ranks, not in torchrun's.
OTHER_LAUNCHERS = ("PMI_", "PMI2_", "PMIX_", "OMPI_", "I_MPI_", "MPI_LOCAL")
# Where the runtime itself works; nothing of it reaches the program.
KEPT = frozenset(
    f"{runtime}_{name}"
    for runtime in ("APPTAINER", "SINGULARITY")
    for name in ("CACHEDIR", "TMPDIR", "CONFIGDIR")
)
CERTIFICATES = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
)
CACHES_OF_USERS = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH", "TORCH_HOME"),
    *("MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"),
)
# Kin of recipes/llm_recipes/run_secrets.py, which looks once more before a record is written.
SECRET_WORDS = frozenset((
    *("token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "key"),
    *("auth", "oauth", "authorization", "bearer", "cookie", "jwt", "pass"),
))
SECRET_ENDINGS = ("token", "secret", "password")
SECRET_BEGINNINGS = ("hf_", "sk-", "ghp_", "github_pat_")
LOCALES_OF_IMAGES = ("", "C", "POSIX", "C.UTF-8", "C.utf8")


def is_dropped(name: str) -> bool:
    """Say whether the host's variable `name` is kept from the program."""
    if name in KEPT:
        return False
    return name in DROPPED or name.startswith(DROPPED_BEGINNINGS)


def dropped_names(env: Mapping[str, str], torchrun: bool = False) -> list[str]:
    """Return the names in `env` that are kept from the program.

    torchrun: it starts the ranks, so those of another launcher are none.
    """
    dropped = [name for name in env if is_dropped(name)]
    if torchrun:
        dropped += [name for name in env if name.startswith(OTHER_LAUNCHERS)]
    return dropped


def network_variables(
    settings: Settings, env: Mapping[str, str], notices: list[str], root: str = "/"
) -> dict[str, str]:
    """Return what makes gloo, NCCL and the recipes use the interface of the site's profile.

    Appends to `notices` where this node has no such interface. root: where to look for sys/.
    """
    interface = settings.get("network", "interface")
    if not interface:
        return {}
    if not os.path.exists(os.path.join(root, "sys/class/net", interface)):
        notices.append(
            f"the site's network interface {interface} does not exist on this node, so gloo and "
            "NCCL choose one themselves"
        )
        return {}
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "LLM_NETWORK_INTERFACE")
    return {name: interface for name in names if not env.get(name)}


def locale_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return the locale to set: images have C.UTF-8 only, and bash and perl complain of others."""
    wanted = [n for n in env if n == "LANG" or n.startswith("LC_")]
    if all(env[name] in LOCALES_OF_IMAGES for name in wanted):
        return {}
    return dict.fromkeys(wanted, "C.UTF-8")


def cache_variables(
    env: Mapping[str, str], cache: str, local: str, user: str = "/"
) -> dict[str, str]:
    """Return where libraries keep their caches.

    cache: the user's folder on a shared file system. local: one on a disk of this node, for the
    compilers' caches, whose locks and renames break on network file systems. user: the home folder,
    where a login to the model hub may have left a token. A variable that the user has set stays.
    """
    places = {
        "HF_HOME": os.path.join(cache, "huggingface"),
        "TORCH_HOME": os.path.join(cache, "torch"),
        "MPLCONFIGDIR": os.path.join(cache, "matplotlib"),
        "XDG_CACHE_HOME": os.path.join(cache, "xdg"),
        "TRITON_CACHE_DIR": os.path.join(local, "triton"),
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(local, "inductor"),
    }
    if not any(env.get(name) for name in ("HF_HOME", "HF_TOKEN", "HF_TOKEN_PATH")):
        usual = os.path.join(user, ".cache", "huggingface", "token")
        if os.path.exists(usual) and not os.path.exists(os.path.join(places["HF_HOME"], "token")):
            places["HF_TOKEN_PATH"] = usual
    # XDG_CACHE_HOME is the exception: desktops set it to a home folder under quota.
    return {
        name: path for name, path in places.items() if name == "XDG_CACHE_HOME" or not env.get(name)
    }


def record_variables(
    settings: Settings, home: str, image: Image, digest: str, driver: str
) -> dict[str, str]:
    """Return what programs and run records have to know of the host side.

    home: the checkout or installation. digest: of what the image holds, "" for an unpacked one.
    driver: version of the NVIDIA driver, "" for none.
    """
    changed = has_changes(home)
    return {
        "LLM_HOME": home,
        "LLM_SITE": settings.site,
        "LLM_IMAGE_NAME": image.name,
        "LLM_IMAGE_VARIANT": image.variant,
        "LLM_IMAGE_DIGEST": digest,
        "LLM_IMAGE_INPUTS": image.digest[:12],
        "LLM_HOST_DRIVER": driver,
        "LLM_CODE_COMMIT": read_commit(home),
        "LLM_CODE_DIRTY": "" if changed is None else str(int(changed)),
        "LLM_CACHE_DIR": settings.get("paths", "cache"),
        "LLM_DATA_DIR": settings.get("paths", "data"),
        "LLM_SCRATCH_DIR": settings.get("paths", "scratch"),
        "LLM_RAMDISK_DIR": settings.get("paths", "ramdisk"),
        "LLM_MODELS_DIR": ":".join(settings.items("paths", "models")),
    }


def launch_variable(
    options: Options, settings: Settings, env: Mapping[str, str], image: Image
) -> str:
    """Return how the program was started, to start it so again: a JSON object in one line.

    What --env sets is in it, except what looks like a secret.
    """
    wanted = settings.get("container", "image")
    label = f"{image.name}-{image.variant}" if image.variant else image.name
    in_step = options.launch != "local" and "SLURM_STEP_NUM_NODES" in env
    nodes, tasks = env.get("SLURM_STEP_NUM_NODES", ""), env.get("SLURM_STEP_TASKS_PER_NODE", "")
    tasks = tasks.partition("(")[0].partition(",")[0]  # 2(x4),1: the last node has fewer
    return json_object({
        "image": image.path if is_path(wanted) else label,
        "gpu": options.gpu,
        "torchrun": options.torchrun,
        "nproc_per_node": options.processes,
        "nodes": int(nodes) if in_step and nodes.isdigit() else 1,
        "tasks_per_node": int(tasks) if in_step and tasks.isdigit() else None,
        "env": {name: text for name, text in options.env.items() if not is_secret(name, text)},
    })


def is_secret(name: str, value: str) -> bool:
    """Say whether a variable holds something that no file must show, as far as its name tells."""
    words = name.lower().replace("apikey", "key").split("_")
    return (
        not SECRET_WORDS.isdisjoint(words)
        or any(word.endswith(SECRET_ENDINGS) for word in words)
        or value.startswith(SECRET_BEGINNINGS)
    )


def json_object(items: Mapping[str, object]) -> str:
    """Return a JSON object of texts, numbers, truth values, None and such objects, in one line.

    By hand: importing json costs a tenth of what llm-run may add to the start of a program.
    """
    pairs = [f"{_json_text(name)}: {_json(value)}" for name, value in items.items()]
    return "{" + ", ".join(pairs) + "}"


def _json(value: object) -> str:
    if isinstance(value, dict):
        return json_object(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, int) else _json_text(str(value))


def _json_text(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    # UTF-16 in JSON's escapes: https://www.rfc-editor.org/rfc/rfc8259#section-7. A byte that is no
    # text is half a pair, as Python's json has it.
    units = text.encode("utf-16-be", "surrogatepass")
    codes = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
    return '"' + "".join(
        chr(code) if 32 <= code < 127 and code not in (34, 92) else f"\\u{code:04x}"
        for code in codes
    ) + '"'


def set_cache_folders(env: Mapping[str, str]) -> list[str]:
    """Return the cache folders that the user has set, which have to be visible in the image."""
    return [env[name] for name in CACHES_OF_USERS if env.get(name, "").startswith("/")]
