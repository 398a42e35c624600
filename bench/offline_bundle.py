"""One file with what a GPU machine without a network lacks to run the speed bench.

Such a machine is taken to have torch, transformers, peft and accelerate for its card; what the
lab and the other contestants need beside them is unpacked into one folder for PYTHONPATH.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import paths
from lab.errors import LabError
from lab.models import catalog
from lab.schema import quote

# beside torch, transformers, peft and accelerate, and what these bring along
PACKAGES = (
    *("nvidia-ml-py", "msgspec", "psutil", "rich", "markdown-it-py", "mdurl", "pygments"),
    *("trl", "datasets", "dill", "multiprocess", "bitsandbytes", "liger-kernel"),
)
PLATFORMS = tuple(
    f"manylinux{tag}_x86_64"
    for tag in ("_2_39", "_2_35", "_2_34", "_2_31", "_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")
)
TOKENIZER = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
COMMANDS = """mkdir -p ~/lab-bench && tar xzf {name} -C ~/lab-bench && cd ~/lab-bench/lab
export PYTHONPATH=~/lab-bench/site LAB_MODELS=~/lab-bench/models HF_HUB_OFFLINE=1
python -m lab bench speed --model llama-3.1-8b --json > speed.json"""


def pack(
    file: Path, python: str, extra: list[str], tell: Callable[[str], object] = print
) -> dict[str, Any]:
    """Write `file`: the lab itself, the packages for `python` on x86-64 Linux, the tokenizer.

    `extra`: packages beside the usual ones, "NAME" or "NAME==VERSION"; a name that is among them
    replaces it. Nothing is installed with what it depends on. Raises LabError if a package cannot
    be fetched.
    """
    if not file.parent.is_dir():
        raise LabError(f"There is no folder '{quote(str(file.parent))}'.", "Make it first.")
    named = {requirement.partition("==")[0]: requirement for requirement in (*pinned(), *extra)}
    with tempfile.TemporaryDirectory(prefix="lab-pack-") as folder:
        wheels, site = Path(folder) / "wheels", Path(folder) / "site"
        site.mkdir()
        for requirement in named.values():
            _fetch(requirement, python, wheels)
            tell(f"fetched {requirement}")
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as opened:
                opened.extractall(site)
        with tarfile.open(file, "w:gz") as bundle:
            bundle.add(site, "site")
            for name in ("lab", "bench", "assets"):
                bundle.add(paths.ROOT / name, f"lab/{name}", filter=_without_caches)
            tokenizer = catalog.BUILT_IN[0].folder
            for name in TOKENIZER:
                if (tokenizer / name).is_file():
                    bundle.add(tokenizer / name, f"models/{tokenizer.name}/{name}")
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "packages": sorted(named),
        "commands": COMMANDS.format(name=file.name),
    }


def pinned() -> list[str]:
    """The packages at the versions of the lab's requirements, where these name them."""
    lines = [
        line.strip()
        for file in sorted(paths.ROOT.glob("requirements*.txt"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    versions = {line.partition("==")[0]: line for line in lines if "==" in line}
    return [versions.get(name, name) for name in PACKAGES]


def _fetch(requirement: str, python: str, wheels: Path) -> None:
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"),
            *("--python-version", python, "--implementation", "cp", *platforms),
            *("-d", str(wheels), "--", requirement),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise LabError(
            f"'{quote(requirement)}' cannot be fetched: {last}.", "Check name and network."
        )


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry
