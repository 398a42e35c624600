"""doctor, models, datasets, methods: what there is to work with."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from lab import host, methods
from lab.cli import hub_search, storage
from lab.cli.console import Output, console, say, table
from lab.data import catalog as datasets
from lab.data import hub, hub_fetch
from lab.errors import LabError
from lab.formatting import count, quantity, size
from lab.host import HostFacts
from lab.methods.parts import compatibility
from lab.models import catalog as models
from lab.models import shipped_configs
from lab.preflight import doctor as machine_doctor


def add(verb: Any) -> None:
    verb("doctor", doctor, "what this machine can do, and what is missing")
    sub = verb("models", list_models, "the models that come with the lab; search the hub")
    sub.add_argument("--search", metavar="TEXT", help="models of the hub with TEXT in their name")
    sub.add_argument("--limit", type=int, default=20, metavar="N", help="of a search, up to 100")
    sets = verb("datasets", datasets_verb, "list datasets; add, download or remove one")
    sets.add_argument(
        "action", nargs="?", default="list", choices=("list", "add", "fetch", "remove")
    )
    sets.add_argument(
        "what", nargs="?", help="a file to add, a Hub ID to fetch or remove, or upload:NAME"
    )
    parser = verb("methods", list_methods, "the fine-tuning methods and their options")
    parser.add_argument(
        "--matrix", action="store_true", help="what each can be combined with, and why not"
    )


def doctor(arguments: argparse.Namespace) -> Output:
    """Looks at the machine and times one product, which the utilisation figures rest on."""
    facts = host.describe()
    missing = machine_doctor.missing()
    problems = _problems(facts, missing)
    versions: dict[str, str | None] = {}
    flops: float | None = None
    if not missing:
        import torch

        versions = {
            "torch": torch.__version__,
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        }
        flops = host.time_product()
    hub = storage.facts()
    ready = {f"builtin:{model.name}": model.is_ready for model in models.BUILT_IN}

    def display() -> None:
        rows = [
            ["System", facts.system],
            ["CPU", f"{facts.processor}, {quantity(facts.cores, 'core')}"],
            ["Memory", f"{size(facts.memory_bytes)}, {size(facts.memory_free_bytes)} free"],
            ["Disk", f"{size(facts.disk_free_bytes)} free in {facts.home}"],
            *storage.rows(hub),
            ["Python", f"{facts.python}, torch {versions.get('torch', 'missing')}"],
            *[
                ["GPU", f"{gpu.name}, {size(gpu.memory_bytes)}, {size(gpu.free_bytes)} free"]
                for gpu in facts.gpus
            ],
        ]
        if not facts.gpus:
            rows.append(["GPU", "none; training runs on the CPU, with small models"])
        if flops is not None:
            rows.append(["CPU speed", f"{flops / 1e9:.0f} GFLOP/s (float32 matrix multiply)"])
        rows += [
            ["Model", f"{name}: {'ready' if is_ready else 'missing'}"]
            for name, is_ready in ready.items()
        ]
        table("This machine", ["", ""], rows)
        for problem in problems:
            console.print(f"[red]Problem:[/red] {escape(problem)}")
        if not problems:
            console.print("[green]All requirements are met.[/green]")

    data = asdict(facts) | {"missing": missing, "problems": problems} | versions
    if flops is not None:
        data["cpu_peak_flops"] = flops
    data["hub"] = hub
    data["models"] = [{"id": name, "ready": is_ready} for name, is_ready in ready.items()]
    return Output(data, display)


def _problems(facts: HostFacts, missing: list[str]) -> list[str]:
    """What will not work here, each with what to do; this one may load torch."""
    problems = machine_doctor.problems(facts)
    if facts.gpus and not missing:
        import torch

        if not torch.cuda.is_available():
            problems.append(
                "There is a GPU, but this torch is a CPU build or its CUDA is newer than the "
                "driver. Install a torch 2.13.0 that matches the driver."
            )
    return problems


def list_models(arguments: argparse.Namespace) -> Output:
    if arguments.search is not None:
        return hub_search.search(arguments.search, arguments.limit)
    rows: list[dict[str, Any]] = [
        {
            "id": f"builtin:{model.name}",
            "title": model.title,
            "parameters": model.parameters,
            "license": model.license,
            "ready": model.is_ready,
        }
        for model in models.BUILT_IN
    ]
    rows += [
        {
            "id": model.id,
            "title": model.name,
            "parameters": model.parameters,
            "license": model.license,
            "ready": False,
            "estimates_only": True,
        }
        for model in shipped_configs.shipped()
    ]

    def display() -> None:
        table(
            "Models",
            ["id", "title", "parameters", "license", "ready"],
            [
                [
                    r["id"],
                    r["title"],
                    count(r["parameters"]),
                    r["license"],
                    "estimates only" if r.get("estimates_only") else "yes" if r["ready"] else "no",
                ]
                for r in rows
            ],
            right="llr",
        )
        console.print(
            "Or a Hub ID such as org/name ('models --search TEXT' finds one), or a folder with "
            "config.json and safetensors."
        )

    return Output({"models": rows}, display)


def datasets_verb(arguments: argparse.Namespace) -> Output:
    if arguments.action == "list":
        return list_datasets(arguments)
    if not arguments.what:
        raise LabError(f"Nothing was named to {arguments.action}.", "See 'datasets --help'.")
    if arguments.action == "add":
        path = Path(arguments.what).expanduser()
        added = datasets.add_file(path)
        done = {"id": added.id, "state": "added"}
        if (note := datasets.renamed(path.name, added)) and not arguments.json:
            say(note)
    elif arguments.action == "remove":
        if datasets.is_on_hub(arguments.what):
            hub.remove(hub.parse(arguments.what))
        else:
            datasets.remove(arguments.what.removeprefix("upload:"))
        done = {"id": arguments.what, "state": "removed"}
    else:
        dataset_id = hub.parse(arguments.what)
        hub_fetch.fetch(dataset_id)
        done = {"id": str(dataset_id), "state": "fetched"}
        if note := hub.split_note(dataset_id):
            done["note"] = note

    def display() -> None:
        say(f"{done['id']} {done['state']}")
        if "note" in done:
            say(done["note"])

    return Output(done, display)


def list_datasets(arguments: argparse.Namespace) -> Output:
    rows = [{"id": dataset.id, **dataset.card} for dataset in datasets.built_in()]
    uploads: list[dict[str, Any]] = [
        {"id": upload.id, "bytes": upload.path.stat().st_size} for upload in datasets.uploads()
    ]
    uploads += [
        {"id": upload, "bytes": hub.parse(upload).file.stat().st_size} for upload in hub.fetched()
    ]

    def display() -> None:
        table(
            "Datasets",
            ["id", "rows", "format", "what it is"],
            [[r["id"], str(r["rows"]), r["format"], r["summary"]] for r in rows],
            right="lr",
        )
        for upload in uploads:
            console.print(f"{upload['id']}  {size(upload['bytes'])}")
        console.print(
            "Or a .jsonl .json .csv .tsv .parquet or .txt file, also gzipped; 'datasets add FILE' "
            "keeps a copy, 'datasets fetch ORG/NAME' brings one from the hub."
        )

    return Output(
        {"datasets": rows, "own": uploads, "hub": [asdict(known) for known in hub.known()]}, display
    )


def list_methods(arguments: argparse.Namespace) -> Output:
    if arguments.matrix:
        return show_matrix(arguments)
    rows = [method.to_json() for method in methods.all_methods()]

    def display() -> None:
        for row in rows:
            console.print(f"[bold]{row['name']}[/bold]  {row['title']} ({row['source']})")
            console.print(f"  {row['summary']}")
            for option in row["options"]:
                console.print(
                    f"  [cyan]{option['name']}[/cyan] = {option['default']}  "
                    f"{option['title']}: {option['help']}"
                )

    return Output({"methods": rows}, display)


def show_matrix(arguments: argparse.Namespace) -> Output:
    """The support matrix, and below it the reason of every "no"."""
    rows = compatibility.matrix(methods.all_methods())

    def display() -> None:
        numbers = [str(position) for position, _ in enumerate(compatibility.FEATURES, 1)]
        lines = [
            [row.name, *["yes" if cell.yes else "–" for cell in row.cells.values()]] for row in rows
        ]
        table("Compatibility", ["method", *numbers], lines)
        for label, feature in zip(numbers, compatibility.FEATURES, strict=True):
            console.print(f"{label:>3}  {feature.title}")
        for reason, cells in compatibility.reasons(rows).items():
            console.print(f"– {', '.join(cells)}: {reason}")

    return Output({"matrix": [asdict(row) for row in rows]}, display)
