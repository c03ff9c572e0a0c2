import os
import signal
from pathlib import Path

import pytest

from physion.errors import DataError, Interrupted, TransientError
from physion.job import Job, Stop
from physion.stages.bulk import Result, Work, run_parts, working_on
from physion.store.artifacts import ArtifactWriter
from physion.store.local import LocalStore


def make(scratch, number):
    """Part `number`: a file and an entry; 7 dies, and from 100 on of that signal; odd ones above 10 are bad."""
    if number >= 100:
        working_on("good.mp4")
        working_on(f"{number}.mp4")
        os.kill(os.getpid(), number - 100)
    if number == 7:
        os._exit(9)
    if number > 10 and number % 2:
        return Result(problems=[f"{number} is odd"])
    path = Path(scratch) / str(number)
    path.write_text(f"{number} made by {os.getpid()}")
    return Result({f"{number}.txt": path}, [{"number": number}])


@pytest.fixture
def job(tmp_path):
    return Job("frames-test", None, {}, ArtifactWriter(LocalStore(tmp_path), "frames", "f" * 20))


def work(job, numbers):
    return [Work(f"{number:02d}", 1, (str(job.output.scratch), number)) for number in numbers]


def texts(job):
    folder = job.output.store.root / job.output.prefix
    return {int(path.stem): path.read_text() for path in folder.glob("*.txt")}


@pytest.mark.parametrize("workers", [0, 2])
def test_entries_come_in_the_order_of_the_work(job, workers):
    numbers = [5, 2, 9, 0]
    assert run_parts(job, work(job, numbers), make, workers=workers) == [{"number": n} for n in numbers]
    assert set(texts(job)) == set(numbers)
    pids = {text.split()[-1] for text in texts(job).values()}
    assert (str(os.getpid()) in pids) == (workers == 0)


def test_finished_parts_are_not_done_again(job):
    run_parts(job, work(job, [1, 2]), make)
    before = texts(job)
    assert run_parts(job, work(job, [1, 2, 3]), make, workers=1) == [{"number": n} for n in (1, 2, 3)]
    assert {n: text for n, text in texts(job).items() if n < 3} == before


@pytest.mark.parametrize("workers", [0, 2])
def test_problems_of_all_parts_are_raised_together_and_the_rest_is_kept(job, workers):
    with pytest.raises(DataError, match=r"2 problems in the dataset:\n11 is odd\n13 is odd"):
        run_parts(job, work(job, [13, 12, 11, 3]), make, workers=workers)
    assert set(job.output.parts()) == {"12", "03"}


def test_a_worker_that_dies_is_a_reason_to_try_again(job):
    with pytest.raises(TransientError, match=r"a worker process died.*--set frames\.workers=1"):
        run_parts(job, work(job, [1, 7]), make, workers=1)
    assert job.output.parts().keys() <= {"01"}


def test_a_video_that_no_worker_survives_is_named(job):
    with pytest.raises(DataError, match=r"^111\.mp4: the process that read it died of SIGSEGV$"):
        run_parts(job, work(job, [1, 2, 100 + signal.SIGSEGV]), make, workers=2)


def test_a_worker_that_is_killed_names_what_it_worked_on(job):
    with pytest.raises(TransientError, match=r"a worker process died over 109\.mp4 \(out of memory\?\)"):
        run_parts(job, work(job, [100 + signal.SIGKILL]), make, workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stop_is_heard_between_parts(job, workers):
    stop = Stop("SIGINT")
    stopping = Job("frames-test", None, {}, job.output, stop=stop)
    with pytest.raises(Interrupted):
        run_parts(stopping, work(job, range(4)), make, workers=workers)
    assert len(texts(job)) < 4
