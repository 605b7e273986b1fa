"""The settings of a site: what every program in bin/ takes from profiles, environment and options.

    llm-run --show-config          # every value and where it came from

A value is looked for as an option, an environment variable, in the site's profile, and in
sites/default.ini, in this order. Every key is named once, in KEYS below; its meaning stands in
sites/default.ini. The classes here are plain because importing `dataclasses` takes 18 ms, half of
what llm-run may add to the start of a program.
"""

from __future__ import annotations

import os

from _llm.errors import LLMError
from _llm.ini import Entry, Profile, read_profile
from _llm.sites import choose_site
from _llm.suggest import hint
from _llm.values import check_variants, expand_value, normalize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# section.key -> (kind, environment variable). Kinds: text; path (absolute); paths (one a line, in
# the environment separated by ":"); binds (separated by line breaks or commas); words (by spaces or
# commas); count (an integer from 0); image (a name or a path); patterns (words, * for anything);
# requirement (words of REQUIREMENTS); digests (sha256:... or paths of files with them, one a line).
KEYS: dict[str, tuple[str, str]] = {
    "paths.cache": ("path", "LLM_CACHE_DIR"),
    "paths.data": ("path", "LLM_DATA_DIR"),
    "paths.scratch": ("path", "LLM_SCRATCH_DIR"),
    "paths.local": ("path", "LLM_LOCAL_DIR"),
    "paths.ramdisk": ("path", "LLM_RAMDISK_DIR"),
    "paths.models": ("paths", "LLM_MODELS_DIR"),
    "paths.binds": ("binds", "LLM_BINDS"),
    "container.image": ("image", "LLM_IMAGE"),
    "container.image_dir": ("path", "LLM_IMAGE_DIR"),
    "container.image_path": ("paths", "LLM_IMAGE_PATH"),
    "container.variants": ("words", "LLM_VARIANTS"),
    "container.cuda_architectures": ("words", "LLM_CUDA_ARCHITECTURES"),
    "container.debian_mirror": ("words", "LLM_DEBIAN_MIRROR"),
    "container.archive": ("paths", "LLM_ARCHIVE_DIR"),
    "container.apptainer": ("path", "LLM_APPTAINER"),
    "container.require": ("requirement", "LLM_REQUIRE"),
    "container.keys": ("paths", ""),
    "container.digests": ("digests", ""),
    "slurm.partition": ("text", "LLM_SLURM_PARTITION"),
    "slurm.gpu_partition": ("text", "LLM_SLURM_GPU_PARTITION"),
    "slurm.account": ("text", "LLM_SLURM_ACCOUNT"),
    "slurm.qos": ("text", "LLM_SLURM_QOS"),
    "slurm.constraint": ("text", "LLM_SLURM_CONSTRAINT"),
    "slurm.time": ("text", "LLM_SLURM_TIME"),
    "slurm.options": ("text", "LLM_SLURM_OPTIONS"),
    "network.hosts": ("patterns", ""),
    "network.interface": ("text", "LLM_NETWORK_INTERFACE"),
    "gpus.model": ("text", "LLM_GPU_MODEL"),
    "gpus.per_node": ("count", "LLM_GPUS_PER_NODE"),
    "gpus.host_pattern": ("patterns", ""),
    "modules.names": ("words", "LLM_MODULES"),
}
VARIANTS = ("cpu", "cuda12", "cuda13")
REQUIRE = "container.require"


class Settings:
    """Every setting with its origin; read only.

    site: the profile's name. site_file: its path. In a value of kind paths, binds, words or
    patterns the items are separated by line breaks; `items` gives them as a list.
    """

    __slots__ = ("_values", "site", "site_file")

    def __init__(self, site: str, site_file: str, values: Mapping[str, tuple[str, str]]) -> None:
        object.__setattr__(self, "site", site)
        object.__setattr__(self, "site_file", site_file)
        object.__setattr__(self, "_values", dict(values))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are read only: {name}")

    site: str
    site_file: str
    _values: dict[str, tuple[str, str]]

    def get(self, section: str, key: str) -> str:
        """Return a value, "" when nothing is set. Raises KeyError for a key that doesn't exist."""
        return self._values[f"{section}.{key}"][0]

    def items(self, section: str, key: str) -> list[str]:
        """Return the items of a list. Raises KeyError for a key that doesn't exist."""
        return self.get(section, key).split("\n") if self.get(section, key) else []

    def origin(self, section: str, key: str) -> str:
        """Return where a value came from, in words for people."""
        return self._values[f"{section}.{key}"][1]

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        """Give (section.key, value, origin) of every setting, in the order of KEYS."""
        return ((name, *self._values[name]) for name in KEYS)


def load_settings(
    env: Mapping[str, str],
    home: str,
    site: str | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings that apply here.

    env: the environment. home: folder of the checkout or installation, which holds sites/.
    site: value of --site: the name or the path of a profile; else LLM_SITE, else the profile whose
    [network] hosts match this host, else `default`. overrides: section.key -> value of an option.
    Raises LLMError that names all faults of the profile and the environment, with file and line.
    """
    name, path = choose_site(env, home, site)
    default_path = os.path.join(home, "sites", "default.ini")
    layers = [default_path] if path == default_path else [default_path, path]
    faults: list[str] = []
    raw: dict[str, tuple[str, str]] = {}
    for layer in layers:
        origin = "default" if layer == default_path else f"profile {layer}"
        profile = _read(layer)
        faults += [f"{layer}, line {line}: {text}" for line, text in _check(profile)]
        for entry in profile.entries:
            raw[f"{entry.section}.{entry.key}"] = (entry.value, f"{origin}, line {entry.line}")
    values = _resolve(env, raw, overrides or {}, faults)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise LLMError(
            f"{count} in the settings",
            "\n       ".join(faults),
            f"correct them; every key is explained in {default_path}",
        )
    return Settings(name, path, values)


def _read(path: str) -> Profile:
    try:
        return read_profile(path)
    except OSError as error:
        raise LLMError(
            f"the site profile {path} cannot be read",
            error.strerror or str(error),
            "check its permissions, or choose another one with LLM_SITE",
        ) from None
    except UnicodeDecodeError as error:
        raise LLMError(
            f"the site profile {path} is not UTF-8",
            f"byte {error.start}: {error.reason}",
            f"iconv -f ISO-8859-1 -t UTF-8 '{path}' > new.ini",
        ) from None


def _check(profile: Profile) -> list[tuple[int, str]]:
    """Return (line, sentence) for everything that is unreadable or unknown in a profile."""
    faults = list(profile.faults)
    sections = list(dict.fromkeys(name.partition(".")[0] for name in KEYS))
    for section, line in profile.sections.items():
        if section not in sections:
            known = hint(section, sections, "[{}]")
            faults.append((line, f"unknown section [{section}]{known}"))
    for entry in profile.entries:
        if entry.section in sections and f"{entry.section}.{entry.key}" not in KEYS:
            faults.append((entry.line, f"unknown key '{entry.key}'{_hint_key(entry)}"))
    return sorted(faults)


def _hint_key(entry: Entry) -> str:
    here = [name.partition(".")[2] for name in KEYS if name.startswith(entry.section + ".")]
    elsewhere = [name.partition(".")[0] for name in KEYS if name.partition(".")[2] == entry.key]
    if elsewhere:
        return f" in [{entry.section}]; it belongs to [{elsewhere[0]}]"
    return f" in [{entry.section}]" + hint(entry.key, here, "'{}'")


def _resolve(
    env: Mapping[str, str],
    raw: Mapping[str, tuple[str, str]],
    overrides: Mapping[str, str],
    faults: list[str],
) -> dict[str, tuple[str, str]]:
    """Return section.key -> (value, origin) after precedence, expansion and check."""
    values: dict[str, tuple[str, str]] = {}
    # A value may name another one; image_dir names cache, so cache has to be there first. KEYS is
    # in such an order, and a profile that refers backwards gets a fault.
    for name, (kind, variable) in KEYS.items():
        expand = False
        if name in overrides:
            text, origin = overrides[name], "option"
        elif variable and env.get(variable):
            text, origin = env[variable], f"environment variable {variable}"
        else:
            (text, origin), expand = raw.get(name, ("", "default")), True
        if name == REQUIRE and env.get(variable):
            # It adds to what the site wants: nobody takes that away by a forgotten variable.
            text, origin = _together(*raw.get(name, ("", "default")), text, origin)
        try:
            if expand:
                text = expand_value(text, env, values)
            values[name] = (normalize(kind, text, env, expand), origin)
            if name == "container.variants":
                check_variants(values[name][0], VARIANTS)
        except ValueError as error:
            faults.append(f"{origin}: {name}: {error}")
            values[name] = ("", origin)
    return values


def _together(profile: str, where: str, text: str, origin: str) -> tuple[str, str]:
    """Return the site's requirement and that of the environment as one, and where it is from."""
    both = not where.startswith("default")
    return f"{profile} {text}", f"{where}; {origin}" if both else origin
