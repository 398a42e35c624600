"""The hash of a base's weights: what it depends on, when it is kept, and who refuses another."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab import paths
from lab.atomic_files import read_object, write_json
from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.settings import GenerationSettings
from lab.errors import LabError
from lab.evals.held_out import evaluate
from lab.export.merge import merge
from lab.models import catalog, moved_base, weights_hash
from lab.paths import RunDir
from lab.preflight import initial_weights
from lab.runs import actions, record_reader
from lab.spec import RunSpec
from tests.conftest import attempt_again

TENSORS = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}


def written(folder: Path, tensors: dict[str, Any], **metadata: str) -> str:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata=metadata or None)
    return weights_hash.hash_of(folder, folder.name)


def test_the_hash_is_of_names_types_shapes_and_values_and_of_nothing_else(tmp_path: Path) -> None:
    first = written(tmp_path / "first", TENSORS)
    assert written(tmp_path / "moved", TENSORS, format="pt") == first, "Metadata does not count."
    shards = tmp_path / "shards"
    shards.mkdir()
    weight_map = {}
    for number, name in enumerate(sorted(TENSORS, reverse=True)):
        file = f"model-{number}.safetensors"
        save_file({name: TENSORS[name]}, shards / file)
        weight_map[name] = file
    index = {"metadata": {}, "weight_map": weight_map}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_hash.hash_of(shards, "shards") == first, "The number of files does not count."
    others = {
        "value": TENSORS | {"b": torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)},
        "name": {"a.weight": TENSORS["a.weight"], "c": TENSORS["b"]},
        "shape": TENSORS | {"a.weight": TENSORS["a.weight"].view(4, 3)},
        "type": TENSORS | {"b": TENSORS["b"].view(torch.float16)},  # the same bytes
        "more": TENSORS | {"c": torch.zeros(1)},
        "swapped": {"a.weight": TENSORS["a.weight"], "b": TENSORS["b"].flip(0) * 2},
    }
    for what, tensors in others.items():
        assert written(tmp_path / what, tensors) != first, f"Another {what} is another base."


def test_weights_are_read_once_for_each_state_of_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read = tmp_path / "base", weights_hash._read
    reads: list[list[Path]] = []

    def count(files: list[Path], *rest: Any) -> str:
        reads.append(files)
        return read(files, *rest)

    monkeypatch.setattr(weights_hash, "_read", count)
    first = written(folder, TENSORS)
    assert weights_hash.hash_of(folder, "base") == first
    assert len(reads) == 2, "Files that were just written are not trusted to be what they were."
    monkeypatch.setattr(weights_hash, "SETTLED_S", 0.02)
    time.sleep(0.05)
    assert {weights_hash.hash_of(folder, "base") for _ in range(3)} == {first}
    assert len(reads) == 3
    file = folder / "model.safetensors"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns and file.stat().st_size == before.st_size
    assert weights_hash.hash_of(folder, "base") != first, "A time that was put back hides nothing."
    content[-1] ^= 1
    file.write_bytes(content)
    time.sleep(0.05)
    weights_hash.hash_of(folder, "base")
    for entry in (paths.home() / "cache" / "weights").iterdir():
        entry.write_text('{"weights": "no hash"}')
    assert weights_hash.hash_of(folder, "base") == first, "A damaged cache is worked out again."


def test_progress_counts_bytes_and_may_end_the_reading(tmp_path: Path) -> None:
    written(tmp_path / "base", TENSORS)
    seen: list[tuple[int, int]] = []
    weights_hash.hash_of(tmp_path / "base", "base", lambda *counts: seen.append(counts))
    assert seen[0] == (0, 52) and seen[-1] == (52, 52), "12 x 4 bytes and 2 x 2."

    class Enough(Exception):
        pass

    def end(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        weights_hash.hash_of(tmp_path / "base", "base", end)


def test_a_file_that_ends_early_or_changes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "base"
    written(folder, TENSORS)
    file = folder / "model.safetensors"

    def touch(done: int, total: int) -> None:
        os.utime(file)

    with pytest.raises(LabError, match="changed while they were read"):
        weights_hash.hash_of(folder, "base", touch)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LabError, match="safetensors"):
        weights_hash.hash_of(folder, "base")


# -- who refuses another base ------------------------------------------------------------------


@pytest.fixture
def movable(trained: list[RunDir], tiny_model: Path, tmp_path: Path) -> tuple[list[RunDir], Path]:
    """The trained runs (full, LoRA) on a copy of their base, which a test may change."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    for run in trained:
        write_json(run.spec, (read_object(run.spec) or {}) | {"model": str(base)})
    return trained, base


def exchange(base: Path) -> str:
    """Other weights of the same shape, in files of the same size and time; their hash."""
    file = base / "model.safetensors"
    before = file.stat()
    changed = {name: tensor * 1.5 for name, tensor in load_file(file).items()}
    file.unlink()  # a loaded model reads its weights from the old file
    save_file(changed, file, metadata={"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    return weights_hash.hash_of(base, "base")


def forget_base(run: RunDir) -> None:
    """Make the run one of a version that kept no hash."""
    receipt = read_object(run.artifact / "receipt.json") or {}
    assert receipt.pop("base")
    write_json(run.artifact / "receipt.json", receipt)
    lines = run.events.read_text().splitlines()
    lines = [line for line in lines if json.loads(line).get("kind") != "base"]
    run.events.write_text("".join(f"{line}\n" for line in lines))


def test_receipt_and_events_keep_the_hash(trained: list[RunDir], tiny_model: Path) -> None:
    now = weights_hash.hash_of(tiny_model, "tiny")
    for run in trained:
        receipt = read_object(run.artifact / "receipt.json") or {}
        assert receipt["base"] == {"model": str(tiny_model), "weights": now}
        assert record_reader.last_event(run, "base")["weights"] == now


Use = Callable[[RunDir, Path], Any]


def use_chat(run: RunDir, target: Path) -> Any:
    return chat_models.load(chat_models.parse(f"run:{run.id}"))


def use_checkpoint(run: RunDir, target: Path) -> Any:
    return chat_models.load(chat_models.parse(f"run:{run.id}@4"))


def use_evaluate(run: RunDir, target: Path) -> Any:
    return evaluate([chat_models.parse(f"run:{run.id}")])


def use_merge(run: RunDir, target: Path) -> Any:
    return merge(run, target)


def use_resume(run: RunDir, target: Path) -> Any:
    return actions.resume(run, ["train.max_steps=40"])


@pytest.mark.parametrize("use", [use_chat, use_checkpoint, use_evaluate, use_merge, use_resume])
def test_another_base_is_refused_with_both_hashes(
    movable: tuple[list[RunDir], Path], tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "submit", lambda run: None)
    (_, run), base = movable
    trained_on = weights_hash.hash_of(base, "base")
    if use is not use_resume:  # which would leave nothing to resume
        use(run, tmp_path / "equal")  # a moved, equal folder passes
    now = exchange(base)
    before = sorted(file.name for file in run.path.rglob("*"))
    with pytest.raises(LabError) as refused:
        use(run, tmp_path / "other")
    message = refused.value.message
    assert message.startswith(f"The base '{base}' is not the one ") and run.id in message
    assert f"(trained on {trained_on}, now {now})" in message and trained_on != now
    assert not (tmp_path / "other").exists()
    assert sorted(file.name for file in run.path.rglob("*")) == before, "Nothing is touched."


@pytest.mark.parametrize("use", [use_chat, use_checkpoint, use_evaluate, use_merge, use_resume])
def test_a_base_that_was_moved_is_found_by_its_weights(
    movable: tuple[list[RunDir], Path], tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "submit", lambda run: None)
    monkeypatch.setenv("LAB_MODELS", str(tmp_path / "models"))
    (other, run), base = movable
    shutil.copytree(base, tmp_path / "models" / "another")
    exchange(tmp_path / "models" / "another")
    wanted = weights_hash.hash_of(base, "base")
    base.rename(tmp_path / "models" / "renamed")
    use(run, tmp_path / "merged")
    if use is use_chat:
        assert chat_models.parse(f"run:{run.id}").base == str(tmp_path / "models" / "renamed")
    exchange(tmp_path / "models" / "renamed")
    with pytest.raises(LabError, match="does not exist, and no other holds its weights") as refused:
        use(other if use is use_resume else run, tmp_path / "other")
    assert wanted in str(refused.value)


def test_a_worker_goes_on_where_its_base_was_moved(
    movable: tuple[list[RunDir], Path], tmp_path: Path
) -> None:
    (_, run), base = movable
    base.rename(tmp_path / "renamed")
    assert attempt_again(run) == 0
    assert (read_object(run.artifact / "receipt.json") or {})["base"]["model"] == str(
        tmp_path / "renamed"
    )


def test_a_result_without_a_hash_is_used_with_a_note(
    movable: tuple[list[RunDir], Path], tmp_path: Path
) -> None:
    (_, run), base = movable
    forget_base(run)
    exchange(base)
    named = chat_models.parse(f"run:{run.id}")
    loaded = chat_models.load(named)
    answer = generate.answer(
        loaded, named, [{"role": "user", "content": "Hi"}], GenerationSettings(max_new_tokens=1)
    )
    assert "was not checked" in answer.receipt.warning
    assert "was not checked" in merge(run, tmp_path / "merged").note
    assert "was not checked" in evaluate([named])[0].note
    assert chat_models.load(chat_models.parse(f"base:{base}")).note == "", "A base has no base."


def test_a_damaged_hash_is_not_an_old_receipt(movable: tuple[list[RunDir], Path]) -> None:
    (_, run), _ = movable
    receipt = read_object(run.artifact / "receipt.json") or {}
    for damaged in ({"weights": "abc"}, {"weights": None}, ["x"], "x", 7):
        write_json(run.artifact / "receipt.json", receipt | {"base": damaged})
        with pytest.raises(LabError, match="is damaged: its base is"):
            chat_models.load(chat_models.parse(f"run:{run.id}"))


def test_a_worker_goes_on_with_the_base_it_began_with(
    movable: tuple[list[RunDir], Path], tmp_path: Path
) -> None:
    (_, run), base = movable
    now = exchange(base)
    assert attempt_again(run) != 0
    message = (read_object(run.result) or {})["message"]
    assert "is not the one" in message and now in message, message
    assert (run.checkpoints / "step-8").is_dir(), "What was trained is left as it was."


def test_a_run_begins_with_weights_of_its_own_base_wherever_it_lies(
    movable: tuple[list[RunDir], Path], tmp_path: Path, make_spec: Callable[..., dict[str, Any]]
) -> None:
    (_, run), base = movable
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(base, elsewhere)
    value = make_spec("lora") | {"init_from_run": f"run:{run.id}"}
    value["method"] = (read_object(run.spec) or {})["method"]
    for folder in (base, elsewhere):
        spec = RunSpec.from_json(value | {"model": str(folder)})
        assert initial_weights.problems(spec) == [], "An equal folder passes under any name."
        trained_on, now = weights_hash.hash_of(base, "base"), exchange(folder)
        (problem,) = initial_weights.problems(spec)
        assert problem.field == "init_from_run" and "is not the one" in problem.message
        assert now in problem.message
        if folder == base:
            assert trained_on in problem.message


def test_a_base_in_memory_is_left_once_its_files_change(
    movable: tuple[list[RunDir], Path],
) -> None:
    (_, run), base = movable
    models = LoadedModels()
    ref = chat_models.parse(f"base:{base}")
    first = models.get(ref)
    assert models.get(ref) is first
    saved = (base / "model.safetensors").read_bytes()
    exchange(base)
    second = models.get(ref)
    assert second is not first, "The base is read again."
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").write_bytes(saved)
    result = models.get(chat_models.parse(f"run:{run.id}"))
    embeddings = [one.model.get_input_embeddings().weight for one in (first, second, result)]
    assert torch.equal(embeddings[0], embeddings[2])
    assert not torch.equal(embeddings[1], embeddings[2]), "No result on a base that is gone."


def test_large_weights_are_not_read_while_a_page_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = written(tmp_path / "base", TENSORS)
    source = catalog.ModelSource("it", str(tmp_path / "base"), local_only=True)
    monkeypatch.setattr(weights_hash.hub, "local_folder", lambda source, **_: Path(source.location))
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    monkeypatch.setattr(weights_hash, "MAX_QUICK_BYTES", size - 1)
    assert weights_hash.identify_quickly(source) is None
    monkeypatch.setattr(weights_hash, "MAX_QUICK_BYTES", size)
    identity = weights_hash.identify_quickly(source)
    assert identity is not None
    assert (identity.weights, identity.commit) == (value, ""), "A folder has no commit."


def test_a_base_of_the_hub_is_kept_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = written(tmp_path / ("a" * 40), TENSORS)
    monkeypatch.setattr(weights_hash.hub, "local_folder", lambda source, **_: tmp_path / ("a" * 40))
    source = catalog.ModelSource("org/name", "org/name", local_only=False)
    identity = {"model": "org/name", "weights": value, "commit": "a" * 40}
    assert weights_hash.identify(source).to_json() == identity
    assert weights_hash.identify_quickly(source) is None, "It may have to be downloaded first."


def test_a_moved_base_is_looked_for_by_its_name_first_past_folders_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_MODELS", str(tmp_path / "models"))
    value = written(tmp_path / "models" / "base", TENSORS)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"damaged")
    hash_of, read = weights_hash.hash_of, list[str]()

    def count(folder: Path, name: str) -> str:
        read.append(folder.name)
        return hash_of(folder, name)

    monkeypatch.setattr(weights_hash, "hash_of", count)
    base = moved_base.model_of(str(tmp_path / "base"), {"weights": value})
    assert base == str(tmp_path / "models" / "base") and read == ["base"]
    read.clear()
    with pytest.raises(LabError, match="no other holds its weights"):
        moved_base.model_of(str(tmp_path / "base"), {"weights": "0" * 64})
    assert read == ["base", "a", "b"], "Each is read once, also where it cannot be used."
    base = moved_base.model_of(str(tmp_path / "gone"), {"weights": value})
    assert base == str(tmp_path / "models" / "base"), "The damaged ones hide it not."


def test_a_moved_base_is_looked_for_in_some_folders_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_MODELS", str(tmp_path))  # the folders beside are those in it, too
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "model.safetensors").touch()
    read: list[str] = []
    monkeypatch.setattr(weights_hash, "hash_of", lambda folder, name: read.append(folder.name))
    for most, names in ((12, list("01234")), (3, list("012"))):
        monkeypatch.setattr(moved_base, "MAX_FOLDERS", most)
        read.clear()
        with pytest.raises(LabError, match="no other holds its weights"):
            moved_base.model_of(str(tmp_path / "gone"), {"weights": "0" * 64})
        assert read == names, "Each is read once, and has gigabytes."
    for model_id, recorded in (
        ("org/name", {"weights": "0" * 64}), (str(tmp_path / "gone"), {"weights": "x"}),
        (str(tmp_path / "gone"), None), ("builtin:smollm2-135m-instruct", {"weights": "0" * 64}),
        (str(tmp_path / "0"), {"weights": "0" * 64}),
    ):  # fmt: skip
        assert moved_base.model_of(model_id, recorded) == model_id
    assert len(read) == 3, "Nothing is looked for where nothing is gone."


def test_the_state_of_a_model_is_that_of_its_files(tmp_path: Path) -> None:
    assert weights_hash.state_of("org/name") == [] == weights_hash.state_of(str(tmp_path))
    written(tmp_path / "base", TENSORS)
    (before,) = weights_hash.state_of(str(tmp_path / "base"))
    file = tmp_path / "base" / "model.safetensors"
    os.utime(file, ns=(before[3], before[3]))
    (after,) = weights_hash.state_of(str(tmp_path / "base"))
    assert before[:4] == after[:4] and before[4] != after[4], "The time of a change cannot be set."
