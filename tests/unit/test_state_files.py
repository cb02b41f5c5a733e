"""States in files of stages: read by elements, whatever they were cut for; checkpoints of both forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.arithmetic import flat_layout
from distributed.ring_tmp.part_files import PROOF, Whole, part_content, part_file, write_own
from distributed.ring_tmp.parts import Part, parts_of
from distributed.state_files import PARAMETERS, Piece, StateFiles, StateIndex, elements, write_file
from nmt.average import average_checkpoints
from nmt.cli import main
from nmt.errors import UserError
from nmt.runs import FORMAT_VERSION, LocalRunStore
from nmt.training.checkpoint import digest_tensors, list_checkpoints, read_checkpoint
from nmt.training.checkpoint_files import drop_unfinished

RUN = "0123456789ab/s1"
ROWS = 96  # of the table, which is cut at multiples of 16
SHAPES = {"bias": torch.Size([5]), "table": torch.Size([ROWS, 4]), "square": torch.Size([3, 3])}


def cut_shapes(*borders: int) -> dict[str, torch.Size]:
    """The shapes with the table's rows as parameters of their own."""
    rows = [stop - start for start, stop in zip((0, *borders), (*borders, ROWS), strict=True)]
    table = {f"table.{number}": torch.Size([count, 4]) for number, count in enumerate(rows)}
    return {"bias": SHAPES["bias"], **table, "square": SHAPES["square"]}


def parts(*borders: int) -> tuple[Part, ...]:
    """A stage for each chunk of the table, and one for the rest."""
    shapes = cut_shapes(*borders)
    chunks = [(name, [name]) for name in shapes if name.startswith("table")]
    return parts_of(shapes, [("rest", ["bias", "square"]), *chunks])


def state(seed: int = 1) -> dict[str, Any]:
    """Random parameters and moments."""
    random = torch.Generator().manual_seed(seed)

    def named() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}

    return {"parameters": named(), "optimizer": {"mean": named(), "variance": named()}, "updates": 7}


def write_parts(directory: Path, own: dict[str, Any], cut: tuple[Part, ...]) -> StateIndex:
    """Files of stages, as nodes write them from their buffers."""
    whole = Whole(flat_layout(SHAPES)[0])
    sources = {
        slot: whole.source_of(named) for slot, named in [(PARAMETERS, own["parameters"]), *own["optimizer"].items()]
    }
    directory.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(cut):
        buffers = {slot: source(part) for slot, source in sources.items()}
        write_file(directory / part_file(number), part_content(part, buffers, 4, own["updates"]))
    return whole.index(directory.name, cut, own["optimizer"])


def write_run(root: Path, step: int, own: dict[str, Any], index: StateIndex | None = None) -> Path:
    """A checkpoint in a run directory: whole, or the index of files."""
    path = root / RUN / "checkpoints" / f"step-{step:08d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / RUN / "config.yaml").write_text("")
    about = {"format_version": FORMAT_VERSION, "run_id": RUN, "config": {}, "identity": {}, "state": {"step": step}}
    content = own if index is None else {"updates": own["updates"], "files": index.to_dict()}
    torch.save(about | content, path)
    return path


def in_parts(root: Path, step: int, own: dict[str, Any], *borders: int) -> Path:
    """A checkpoint in files of stages."""
    directory = root / RUN / "checkpoints" / f"step-{step:08d}.parts"
    return write_run(root, step, own, write_parts(directory, own, parts(*borders)))


def assert_holds(content: dict[str, Any], own: dict[str, Any]) -> None:
    for found, wanted in [
        (content["parameters"], own["parameters"]),
        *((content["optimizer"][slot], named) for slot, named in own["optimizer"].items()),
    ]:
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name], one) for name, one in wanted.items())
    assert content["updates"] == own["updates"]


def test_a_checkpoint_in_parts_is_read_as_one_in_one_file(tmp_path: Path) -> None:
    own = state()
    path = in_parts(tmp_path / "parts", 4, own, 32, 48)
    whole = write_run(tmp_path / "whole", 4, own)
    content = read_checkpoint(path)
    assert_holds(content, own)
    for kind in ("parameters", "optimizer"):
        assert (
            digest_tensors(content[kind]) == digest_tensors(read_checkpoint(whole)[kind]) == digest_tensors(own[kind])
        )


def test_what_was_cut_in_one_way_is_read_by_elements_for_another(tmp_path: Path) -> None:
    own, written, wanted = state(), parts(32, 48), parts(16, 80)
    content = read_checkpoint(in_parts(tmp_path, 4, own, 32, 48))
    whole = Whole(flat_layout(SHAPES)[0])
    for tensors in (content["parameters"], own["parameters"]):
        source = whole.source_of(tensors)
        for part in (*wanted, *written):
            for held in part.held:
                name, start = whole.locate(held.start)
                expected = own["parameters"][name].reshape(-1)[start : start + held.stop - held.start]
                assert torch.equal(part.view(source(part), held.name).reshape(-1), expected)
    for start, stop in ((0, 4 * ROWS), (100, 200), (127, 129), (4 * ROWS - 1, 4 * ROWS)):
        expected = own["optimizer"]["mean"]["table"].reshape(-1)[start:stop]
        assert torch.equal(elements(content["optimizer"]["mean"], "table", start, stop), expected)


def test_a_part_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    path = in_parts(tmp_path, 4, state(), 32)
    part = path.with_suffix(".parts") / part_file(1)
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        read_checkpoint(path)
    part.unlink()
    with pytest.raises(UserError, match=rf"step-00000004\.pt: lacks its file .*{part.name}"):
        read_checkpoint(path)


def test_only_files_with_an_index_are_a_checkpoint(tmp_path: Path) -> None:
    store = LocalRunStore(tmp_path)
    path = in_parts(tmp_path, 4, state())
    half = in_parts(tmp_path, 8, state(2))
    half.unlink()  # the process died before it had written the index
    assert list_checkpoints(store, RUN) == [4]
    drop_unfinished(store, RUN)
    assert not half.with_suffix(".parts").exists()
    assert_holds(read_checkpoint(path), state())


def test_forms_are_converted_into_each_other_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NMT_RUNS", str(tmp_path))
    own = state()
    path = in_parts(tmp_path, 4, own, 32, 48)
    assert main(["convert", f"run={RUN}", "form=whole"]) == 0
    assert capsys.readouterr().out == f"{path}: converted\n"
    assert not path.with_suffix(".parts").exists()
    assert "files" not in torch.load(path, weights_only=True)
    assert_holds(read_checkpoint(path), own)
    size = sum(4 * shape.numel() for shape in SHAPES.values()) * 3
    assert size < path.stat().st_size < size + 10_000  # a tensor's own elements, and not the file that it came from
    assert main(["convert", f"checkpoint={path}", "form=whole"]) == 0
    assert capsys.readouterr().out == f"{path}: is of the form whole already\n"
    assert main(["convert", f"checkpoint={path}", "form=parts"]) == 0
    assert "parameters" not in torch.load(path, weights_only=True)
    assert_holds(read_checkpoint(path), own)
    capsys.readouterr()
    assert main(["convert", f"run={RUN}", "form=pieces"]) == 2
    assert "allowed: whole, parts" in capsys.readouterr().err


def test_parts_have_a_mean_with_whole_checkpoints(tmp_path: Path) -> None:
    first, second = state(), state(2)
    mean = read_checkpoint(average_checkpoints([in_parts(tmp_path, 4, first, 48), write_run(tmp_path, 8, second)]))
    for name, found in mean["parameters"].items():
        one, other = first["parameters"][name].double(), second["parameters"][name].double()
        assert torch.equal(found, ((one + other) / 2).float())


def test_a_node_writes_where_the_trainer_has_been(tmp_path: Path) -> None:
    """A directory of the same name on another machine is not the trainer's."""
    assert write_own(tmp_path / "nowhere", "word", {}) == ([], "")
    (tmp_path / PROOF).write_text("another word")
    assert write_own(tmp_path, "word", {}) == ([], "")
    assert StateFiles(tmp_path, StateIndex("", {}, {}, [])).index.files == []


@pytest.mark.parametrize(("directory", "file"), [("..", "a.pt"), ("d", "../a.pt"), ("d", "/a.pt"), ("d/e", "a.pt")])
def test_an_index_names_files_beside_it_and_no_others(directory: str, file: str) -> None:
    data = StateIndex("d", {"w": (1,)}, {"w": [Piece(0, 1, "a.pt", "w")]}, []).to_dict()
    assert StateIndex.from_dict(data).files == ["a.pt"]
    with pytest.raises(ValueError, match="is no name of a file"):
        StateIndex.from_dict(data | {"directory": directory, "pieces": {"w": [[0, 1, file, "w"]]}})
