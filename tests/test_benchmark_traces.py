"""The benchmark of caches counts right: traces are read as written, made ones are the same each time, references are exact."""

import gzip
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import contenders, hit_ratio, reference, traces
from benchmarks.contenders import CACHETOOLS, DEFAULT, FIFO, LRU, OPTIMUM, POLICIES, THEINE, Job, Score
from benchmarks.traces import Trace

KEYS = st.lists(st.integers(0, 9), min_size=1, max_size=60)


def write(path: Path, text: bytes, *, packed: bool = False) -> Path:
    path.write_bytes(gzip.compress(text) if packed else text)
    return path


# ---- files ----


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["web.txt.gz", "web.txt", "web"])
def test_a_file_is_read_whatever_its_name(tmp_path: Path, name: str, packed: bool) -> None:
    trace = traces.read(write(tmp_path / name, b"a 10\nb 20\n\na 10\nc 5\n", packed=packed))
    assert trace == Trace("web", [0, 1, 0, 2], [10, 20, 10, 5])


@pytest.mark.parametrize("text", [b"7\n8\n7", b"7 1\n8 1\n7 1\n", b"7\r\n8 1\r\n\t7\r\n"])
def test_without_sizes_each_request_counts_one(tmp_path: Path, text: bytes) -> None:
    trace = traces.read(write(tmp_path / "t", text))
    assert (trace.keys, trace.sizes) == ([0, 1, 0], None)
    assert list(trace.requests()) == [(0, 1), (1, 1), (0, 1)]


def test_any_word_is_a_key(tmp_path: Path) -> None:
    words = ["/a?b=c", "\N{GREEK SMALL LETTER ALPHA}".encode(), b"\xff\xfe", "0x10", "10", "#", "-1"]
    lines = [word if isinstance(word, bytes) else word.encode() for word in words]
    assert traces.read(write(tmp_path / "t", b"\n".join(lines))).keys == list(range(7))


def test_a_request_of_no_bytes_is_one(tmp_path: Path) -> None:
    assert traces.read(write(tmp_path / "t", b"a 0\nb 1\n")).sizes == [0, 1]


@pytest.mark.parametrize("bad", [b"a 1 2", b"a b", b"a -1", b"a 1.5", b"a 1e3", b"a 0x1"])
def test_what_is_no_request_is_named_with_its_line(tmp_path: Path, bad: bytes) -> None:
    path = write(tmp_path / "odd", b"a 1\n\n" + bad + b"\n")
    with pytest.raises(ValueError, match=r"odd, line 3: .*" + bad.decode()):
        traces.read(path)


@pytest.mark.parametrize("text", [b"", b"\n \n"])
def test_a_file_without_requests_is_an_error(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ValueError, match="has no requests"):
        traces.read(write(tmp_path / "t", text))


def test_bounds_are_parts_of_the_keys_or_of_their_first_sizes() -> None:
    trace = Trace("t", [1, 2, 1, 3, 4], [100, 200, 999, 300, 400])
    assert (trace.unique(), trace.unique_bytes()) == (4, 1000)
    assert [trace.bound(percent) for percent in (1, 25, 50, 100)] == [1, 1, 2, 4]
    assert trace.bound(20, by_bytes=True) == 200
    assert Job(trace, 50).counted.sizes is None
    assert Job(trace, 50, True).bound == 500


# ---- made ones ----


def test_made_traces_are_the_same_each_time() -> None:
    first, again = traces.synthetic(0.02), traces.synthetic(0.02)
    assert first == again
    assert len({trace.name for trace in first}) == len(first) == 5
    assert all(len(trace.keys) == 2000 for trace in first)
    assert traces.zipf(1.1, requests=500).keys != traces.zipf(1.1, requests=500, seed=9).keys


@pytest.mark.parametrize("exponent", [0.8, 1.1])
def test_popularity_is_that_of_the_rank(exponent: float) -> None:
    """The most popular key of a hundred has its share, the tenth the share that its exponent says."""
    counts = Counter(traces.zipf(exponent, keys=100, requests=50_000).keys)
    whole = sum(rank**-exponent for rank in range(1, 101))
    (key, most), tenth = counts.most_common()[0], counts.most_common()[9][1]
    assert most / 50_000 == pytest.approx(1 / whole, rel=0.05)
    assert tenth / most == pytest.approx(10**-exponent, rel=0.15)
    assert max(counts) < 100
    assert [key for key, _ in counts.most_common(3)] != [0, 1, 2]
    assert key in counts


def test_what_a_scan_asks_for_is_asked_for_once() -> None:
    keys = traces.scans(keys=500, requests=2000, scan=100).keys
    counts = Counter(key for key in keys if key >= 500)
    assert set(counts.values()) == {1}
    assert len(counts) == 800
    assert sorted(counts) == [key for key in keys if key >= 500]
    inside = [a >= 500 and b == a + 1 for a, b in pairwise(keys)]
    assert sum(inside) == 8 * 99


def test_what_was_popular_moves_on() -> None:
    keys = traces.moving(keys=1000, requests=4000, moves=2).keys
    before, after = Counter(keys[:2000]), Counter(keys[2000:])
    assert {key for key, _ in before.most_common(5)} != {key for key, _ in after.most_common(5)}


def test_a_loop_asks_for_all_in_turn() -> None:
    assert traces.loop(keys=3, requests=7).keys == [0, 1, 2, 0, 1, 2, 0]


# ---- references ----


def plain_hits(keys: list[int], bound: int, *, move: bool) -> int:
    """A list, oldest first."""
    held: list[int] = []
    hits = 0
    for key in keys:
        hits += key in held
        if key in held and move:
            held.remove(key)
        if key not in held:
            held.append(key)
        del held[:-bound]
    return hits


def best_hits(keys: list[int], bound: int) -> int:
    """Try everything that a cache could hold."""
    reached = {frozenset[int](): 0}
    for key in keys:
        following: dict[frozenset[int], int] = {}
        for held, hits in reached.items():
            grown = held | {key}
            choices = [grown] if len(grown) <= bound else [grown - {out} for out in grown]
            for choice in choices:
                following[choice] = max(following.get(choice, 0), hits + (key in held))
        reached = following
    return max(reached.values())


@given(KEYS, st.integers(1, 12))
def test_lru_and_fifo_are_exact(keys: list[int], bound: int) -> None:
    trace = Trace("t", keys)
    assert reference.exact_lru(trace, bound) == plain_hits(keys, bound, move=True)
    assert reference.exact_fifo(trace, bound) == plain_hits(keys, bound, move=False)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=25), st.integers(1, 4))
def test_nothing_is_better_than_the_optimum(keys: list[int], bound: int) -> None:
    assert reference.optimum(Trace("t", keys), bound) == best_hits(keys, bound)


def test_sizes_count() -> None:
    """Room for 10: the large one is never held, 6 and 5 do not fit together, what is held keeps its first size."""
    keys, sizes = [1, 2, 1, 3, 3, 2, 2, 4, 2], [6, 5, 6, 11, 11, 5, 9, 5, 5]
    assert reference.exact_lru(Trace("t", keys, sizes), 10) == 2
    assert reference.exact_fifo(Trace("t", [1, 2, 1, 3, 1, 2], [3, 3, 3, 5, 3, 3]), 10) == 1
    assert reference.exact_lru(Trace("t", [1, 2, 1, 3, 1, 2], [3, 3, 3, 5, 3, 3]), 10) == 2


# ---- mempool against them ----


def requests_of_all_sizes(seed: int, count: int = 3000) -> Trace:
    draw = random.Random(seed)
    keys = [min(int(draw.expovariate(0.02)), 400) for _ in range(count)]
    return Trace("t", keys, [key * 37 % 100 for key in keys])


@pytest.mark.parametrize("by_bytes", [False, True])
@pytest.mark.parametrize("percent", [1, 5, 20, 100])
def test_lru_and_fifo_of_mempool_have_the_hits_of_the_references(percent: float, by_bytes: bool) -> None:
    job = Job(requests_of_all_sizes(4), percent, by_bytes)
    for policy, exact in (("lru", reference.exact_lru), ("fifo", reference.exact_fifo)):
        assert contenders.own(policy)(job) == exact(job.counted, job.bound)


def test_all_contenders_answer_and_none_beats_the_optimum() -> None:
    job = Job(traces.zipf(1.0, keys=500, requests=2000), 10)
    score = contenders.play(job)
    assert {*POLICIES, DEFAULT, LRU, FIFO, OPTIMUM} <= set(score.hits)
    assert 0 < max(score.hits.values()) == score.hits[OPTIMUM]
    assert min(score.hits.values()) > 0


def test_by_bytes_only_those_run_that_know_sizes() -> None:
    score = contenders.play(Job(requests_of_all_sizes(5), 10, True))
    assert set(score.hits).isdisjoint({OPTIMUM, THEINE})
    assert set(POLICIES) < set(score.hits)


# ---- what is said ----


def score_of(**hits: int) -> Score:
    """A run of a thousand requests in which nobody else has any hit."""
    names = {"default": DEFAULT, "theine": THEINE, "exact": LRU, "peer": CACHETOOLS}
    nothing = dict.fromkeys((*POLICIES, DEFAULT, LRU, FIFO, OPTIMUM, THEINE, CACHETOOLS), 0)
    return Score("t", 1, False, 10, 1000, nothing | {names.get(name, name): value for name, value in hits.items()})


@pytest.mark.parametrize(
    ("scores", "verdicts"),
    [
        ([score_of(default=500, exact=500, lru=500, theine=500, peer=500)], ["aim", "must", "must", "must", "must"]),
        ([score_of(default=490, exact=500, lru=500, theine=491, peer=500)], ["must", "MISS", "must", "must", "must"]),
        ([score_of(default=489, exact=500, lru=501, theine=9, peer=500)], ["MISS", "must", "MISS", "must", "MISS"]),
        ([score_of(default=489, theine=400), score_of(default=1, theine=91)], ["aim", "MISS", "must", "must", "must"]),
        ([score_of(default=489), score_of(exact=11, lru=11, peer=11)], ["MISS", "n/a", "must", "must", "must"]),
        ([score_of(lru=1, default=1), score_of(exact=1, peer=1)], ["must", "n/a", "MISS", "must", "MISS"]),
        ([score_of(fifo=1, default=1, theine=1)], ["aim", "must", "must", "MISS", "must"]),
    ],
)
def test_targets_are_judged(scores: list[Score], verdicts: list[str]) -> None:
    report = hit_ratio.judged(scores)
    assert [row.verdict for row in report.rows if row.must is not None] == verdicts


def test_a_rival_without_hits_is_shown_without_a_ratio() -> None:
    rows = [row for row in hit_ratio.judged([score_of(default=200)]).rows if row.rival == LRU and row.unit == "hits"]
    assert [(row.rival_value, row.own_value, row.ratio, row.verdict) for row in rows] == [(0.0, 0.2, None, "-")]


def test_bytes_are_played_where_there_are_sizes() -> None:
    jobs = hit_ratio.jobs_of([Trace("a", [1, 2]), Trace("b", [1, 2], [5, 6])])
    assert [job.trace.name for job in jobs if job.by_bytes] == ["b"] * 5
    assert [job.trace.name for job in jobs if not job.by_bytes] == ["a"] * 5 + ["b"] * 5


def test_who_has_more_hits_is_named() -> None:
    (said,) = hit_ratio.judged([score_of(default=400, sieve=500, s3fifo=404, theine=410)]).losses
    assert said == "mean hit ratio, t: 40.0% of the default policy against sieve 50.0%, theine 41.0%"


def test_absent_rivals_are_said() -> None:
    score = score_of(default=500)
    del score.hits[THEINE], score.hits[CACHETOOLS]
    absent = [row for row in hit_ratio.judged([score]).rows if row.rival == THEINE]
    assert [(row.verdict, row.note) for row in absent] == [("n/a", "theine is not installed")]


def test_the_command_line_takes_any_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(f"{key} {size}\n" for key, size in requests_of_all_sizes(6, 500).requests())
    path = write(tmp_path / "mine.txt.gz", lines.encode(), packed=True)
    assert hit_ratio.main(["--trace", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "mine, 500 requests" in printed
    assert "mine, by bytes, 500 requests" in printed
    assert "MISS" not in "".join(line for line in printed.splitlines() if "other hits than" in line)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "web.txt", tmp_path / "b" / "web.txt", tmp_path / "mail.txt"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        write(path, b"1\n2\n")
    names = [trace.name for trace in hit_ratio.read_all([*paths, paths[0]])]
    assert names == [str(paths[0]), str(paths[1]), "mail"]


def test_the_smallest_traces_are_played() -> None:
    for trace in (Trace("one", [1]), Trace("nothing", [1, 1, 2], [0, 0, 0])):
        scores = [contenders.play(job) for job in hit_ratio.jobs_of([trace])]
        assert {score.bound for score in scores} == {1}
        assert "mean over all" in hit_ratio.table(scores)
        assert hit_ratio.judged(scores).rows


def test_a_trace_that_cannot_be_read_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, said in ((tmp_path / "none", "No such file"), (write(tmp_path / "bad", b"a b c\n"), "bad, line 1")):
        with pytest.raises(SystemExit, match="2"):
            hit_ratio.main(["--trace", str(path)])
        assert said in capsys.readouterr().err
