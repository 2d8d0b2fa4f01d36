"""Tables of tile sides: which entry counts, what a search finds, and the two commands."""

import json
from types import SimpleNamespace

import pytest
import torch

from masked_swin.kernels.triton import autotune, launch, tuning
from masked_swin.kernels.triton.pixel_embedding import embedding_kernel
from tests.support.triton_on_ptxsim import on_ptxsim

RULE = {"BLOCK_R": 64, "num_warps": 4}
KEY = "embedding_kernel channels=60"
TIMED = "timed on NVIDIA A100, Triton 3.8.0"


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The package's table and the user's, both empty, on an A100."""
    paths = SimpleNamespace(package=tmp_path / "package.json", user=tmp_path / "folder" / "user.json")
    monkeypatch.setattr(tuning, "PACKAGE_TABLE", paths.package)
    monkeypatch.setattr(tuning, "architecture", lambda: "sm_80")
    monkeypatch.setenv("MASKED_SWIN_TUNED", str(paths.user))
    tuning._entries.cache_clear()
    yield paths
    tuning._entries.cache_clear()


def entry(**tiles):
    return {KEY: {"tiles": tiles, "by": TIMED}}


def chosen(**shape):
    return tuning.tuned(embedding_kernel, RULE, **({"channels": 60} | shape))


def test_the_users_entry_goes_before_the_packages_and_that_before_the_rule(tables):
    assert chosen() == RULE
    tuning.write_table(tables.package, "sm_80", entry(BLOCK_R=32, num_warps=2))
    assert chosen() == {"BLOCK_R": 32, "num_warps": 2}
    assert chosen(channels=180) == RULE
    tuning.write_table(tables.user, "sm_80", entry(BLOCK_R=16, num_warps=1))
    assert chosen() == {"BLOCK_R": 16, "num_warps": 1}


def test_other_devices_and_other_kernels_of_the_name_take_the_rule(tables, monkeypatch):
    tuning.write_table(tables.package, "sm_90", entry(BLOCK_R=32, num_warps=2))
    tuning.write_table(tables.package, "sm_80", entry(BLOCK_T=32, num_warps=2))  # of an older version
    assert chosen() == RULE
    monkeypatch.setattr(tuning, "architecture", lambda: None)
    assert chosen() == RULE


def test_writing_keeps_the_other_entries_and_leaves_no_other_file(tables):
    tuning.write_table(tables.user, "sm_80", {"other": {"tiles": {"num_warps": 1}, "by": ""}})
    tuning.write_table(tables.user, "sm_90", entry(**RULE))
    tuning.write_table(tables.user, "sm_80", entry(**RULE))
    table = json.loads(tables.user.read_text())
    assert table == {"sm_80": {**entry(**RULE), "other": {"tiles": {"num_warps": 1}, "by": ""}}, "sm_90": entry(**RULE)}
    assert [path.name for path in tables.user.parent.iterdir()] == ["user.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"sm_80": {"kernel": {"tiles": {"BLOCK_R": 0}}}}'])
def test_a_broken_table_is_named(tables, text):
    tables.package.write_text(text)
    with pytest.raises(ValueError, match=r"package.json is no table of tuned kernels .* run the autotuner"):
        chosen()


def test_the_packages_own_table_is_well_formed():
    for entries in tuning.read_table(tuning.PACKAGE_TABLE).values():
        assert all({"tiles", "by"} == set(entry) for entry in entries.values())


def test_search_walks_to_the_cheapest_tiles():
    requested = []

    def run():
        requested.append(chosen())
        return []

    def measure(run, key, tiles):
        assert key == KEY
        with tuning.trying(tiles):
            run()
        block, warps = requested[-1].values()
        if warps == 8:
            return float("inf")  # does not fit
        return abs(block - 16) + abs(warps - 2) + 1.0

    def never_fits(run, key, tiles):
        return float("inf")

    found = autotune.search(run, measure)
    assert found == {KEY: autotune.Found({"BLOCK_R": 16, "num_warps": 2}, 1.0, 51.0)}
    assert autotune.search(run, measure, min_gain=0.99)[KEY].tiles == RULE
    assert autotune.search(run, never_fits)[KEY].tiles == RULE
    assert autotune.search(run, measure, known={KEY}) == {}


def test_limits_hold_in_searches_and_in_tables(tables):
    def run():
        tuning.tuned(embedding_kernel, RULE, max_tiles={"BLOCK_R": 64}, channels=60)
        return []

    def larger_is_cheaper(run, key, tiles):
        return 1 / tiles[key]["BLOCK_R"]

    assert autotune.search(run, larger_is_cheaper)[KEY].tiles == RULE
    tuning.write_table(tables.user, "sm_80", entry(BLOCK_R=128, num_warps=4))
    assert tuning.tuned(embedding_kernel, RULE, max_tiles={"BLOCK_R": 64}, channels=60) == RULE
    assert tuning.tuned(embedding_kernel, RULE, channels=60)["BLOCK_R"] == 128


def test_command_without_a_device(tables, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert autotune.main([]) == 1
    assert "no NVIDIA or AMD device here" in capsys.readouterr().err


def test_command_writes_what_it_found(tables, capsys, monkeypatch):
    def run():
        chosen()
        return []

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(autotune, "workloads", lambda *_: [("embedding", run)])
    monkeypatch.setattr(autotune, "time_on_device", lambda run, key, tiles: float(tiles[key]["BLOCK_R"]))
    assert autotune.main([]) == 0
    assert (
        "embedding_kernel channels=60: BLOCK_R 4, num_warps 4: 4.000 ms, by rule 64.000 ms" in capsys.readouterr().out
    )
    written = json.loads(tables.user.read_text())["sm_80"][KEY]
    assert written["tiles"] == {"BLOCK_R": 4, "num_warps": 4}
    assert written["by"].startswith("timed on Some GPU")
    assert not tables.package.exists()
    assert chosen() == {"BLOCK_R": 4, "num_warps": 4}
    assert autotune.main(["--output", str(tables.user / "below a file.json")]) == 1
    assert "below a file.json" in capsys.readouterr().err


def embed(of=1.0):
    image, mean, weight = torch.full((1, 3, 8, 8), of), torch.zeros(3), torch.arange(12.0).view(4, 3, 1, 1)
    arguments = (image, *[None] * 4, mean, weight, *torch.ones(3, 4), 8, 8, 0.0, 1.0, 0.0, False)
    return [torch.ops.masked_swin.pixel_embedding_triton(*arguments)]


def test_a_candidate_is_timed_and_refused_if_it_cannot_be_compiled_or_is_wrong(monkeypatch):
    monkeypatch.setattr("triton.testing.do_bench", lambda start, **_: start() or 7.0)
    key = "embedding_kernel channels=4"
    with on_ptxsim() as emulator:
        assert autotune.time_on_device(embed, key, {key: {"BLOCK_R": 16, "num_warps": 1}}) == 7.0
        assert len(emulator.launches) == 3  # for the results wanted, for its own, and timed
        assert autotune.time_on_device(embed, "other_kernel", {}) == 0.0
        assert autotune.time_on_device(embed, key, {key: {"BLOCK_R": 3, "num_warps": 1}}) == float("inf")
        inputs = iter([1.0, float("nan")])
        assert autotune.time_on_device(lambda: embed(next(inputs)), key, {}) == float("inf")


def test_a_kernel_that_adds_to_its_output_is_timed_too(monkeypatch):
    def run():
        total = torch.zeros(4)
        chosen()
        launch.launch(embedding_kernel, (1,), total[1:], **RULE)
        return [total]

    monkeypatch.setattr(launch, "launch", lambda kernel, grid, total, **_: total.add_(1))
    monkeypatch.setattr("triton.testing.do_bench", lambda start, **_: [start() for _ in range(3)] and 7.0)
    assert autotune.time_on_device(run, KEY, {KEY: RULE}) == 7.0
