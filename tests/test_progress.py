import pytest

from physion import progress


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3599.7, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations_as_people_say_them(seconds, said):
    assert progress.duration(seconds) == said


def test_before_anything_is_done_nobody_says_how_long_it_takes(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("evaluate: slots", 52, "videos", done=2) as bar:
        clock[0] += 33
        bar.update(2, 52)
    assert capsys.readouterr().err.splitlines() == ["evaluate: slots: 2/52 videos (3 %)"]


def test_a_log_gets_a_line_now_and_then_with_what_is_left(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("tokenize", 10, "videos", done=4) as bar:
        for _ in range(6):
            clock[0] += 10
            bar.advance(note="fast")
    # One line every 15 s at most, none for the end; 4 of the 10 were there before.
    assert capsys.readouterr().err.splitlines() == [
        "tokenize: 6/10 videos (60 %), 40 s left, fast",
        "tokenize: 8/10 videos (80 %), 20 s left, fast",
    ]
