"""Handlers that users wrote against Orbax's protocol, driven by holdfast's checkpointers."""

import asyncio
import concurrent.futures
import dataclasses
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

import holdfast as hf
from holdfast_checkpointer.handlers.foreign.folders import ItemFolder

a = hf.args


class Archive(hf.CheckpointHandler):
    """Two files; registered arguments; a subclass of holdfast's base class."""

    @classmethod
    def typestr(cls):
        return "mine.Archive"

    def save(self, directory, args):
        text = json.dumps(args.item)
        for number, half in enumerate((text[: len(text) // 2], text[len(text) // 2 :])):
            with open(directory / f"part-{number}", "w") as file:
                file.write(half)

    def restore(self, directory, args):
        return json.loads("".join((directory / f"part-{n}").read_text() for n in range(2)))

    def metadata(self, directory):
        return {"files": sorted(p.name for p in directory.iterdir() if p.name[0] == "p")}


@a.register_with_handler(Archive, for_save=True)
@dataclasses.dataclass
class ArchiveSave(a.CheckpointArgs):
    item: object


@a.register_with_handler(Archive, for_restore=True)
@dataclasses.dataclass
class ArchiveRestore(a.CheckpointArgs):
    pass


class Later(hf.AsyncCheckpointHandler):
    """Writes in the background, once a gate is open."""

    def __init__(self, gate=None):
        self._gate = gate or threading.Event()
        if gate is None:
            self._gate.set()

    async def async_save(self, directory, args):
        text = json.dumps(args.item)

        def write():
            assert self._gate.wait(60)
            (directory / "data").mkdir()
            (directory / "data" / "text").write_text(text)

        pool = concurrent.futures.ThreadPoolExecutor(1)
        future = pool.submit(write)
        pool.shutdown(wait=False)
        return [future]

    def restore(self, directory, args=None):
        return json.loads((directory / "data" / "text").read_text())


@a.register_with_handler(Later, for_save=True)
@dataclasses.dataclass
class LaterSave(a.CheckpointArgs):
    item: object


@a.register_with_handler(Later, for_restore=True)
@dataclasses.dataclass
class LaterRestore(a.CheckpointArgs):
    pass


class Duck:
    """No base class, no registered arguments, no metadata."""

    def __init__(self):
        self.saved = None

    def save(self, directory, *args, **kwargs):
        self.saved = (args, kwargs)
        (directory / "item.json").write_text(json.dumps(args[0], **kwargs))

    def restore(self, directory, upper=False):
        found = json.loads((directory / "item.json").read_text())
        return {name.upper(): found[name] for name in found} if upper else found


class Wrapping(hf.StandardCheckpointHandler):
    """A handler of holdfast's with something done around its methods."""

    def save(self, directory, args):
        numbers = dict(args.item)
        (directory / "note").write_text(numbers.pop("text"))
        super().save(directory, args=a.StandardSave(numbers))

    def restore(self, directory, args):
        found = super().restore(directory, args=args)
        return {"text": (directory / "note").read_text(), **found}


HANDLERS = {
    "registered": (Archive, lambda v: ArchiveSave(v), lambda: ArchiveRestore()),
    "asynchronous": (Later, lambda v: LaterSave(v), lambda: LaterRestore()),
    "overriding": (Wrapping, lambda v: a.StandardSave(v), lambda: a.StandardRestore()),
}
VALUE = {"text": "é", "n": 3}


@pytest.fixture(autouse=True)
def spools(tmp_path_factory, monkeypatch):
    """Nothing of a spool stays behind, whatever becomes of a save."""
    folder = tmp_path_factory.mktemp("spools")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder

    def left():
        return [entry.name for entry in folder.glob("holdfast-spool-*")]

    patience_ends = time.monotonic() + 10
    while left() and time.monotonic() < patience_ends:
        time.sleep(0.02)  # an interrupted save is tidied up behind its caller
    assert left() == []


@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("checkpointer", [hf.Checkpointer, hf.AsyncCheckpointer])
def test_a_users_handler_saves_and_restores_on_every_store(kind, checkpointer, place):
    handler, save, restore = HANDLERS[kind]
    with checkpointer(handler()) as made:
        made.save(f"{place}/one", args=save(VALUE))
        assert made.restore(f"{place}/one", args=restore()) == VALUE
        assert made.restore(f"{place}/one") == VALUE
    assert hf.verify(f"{place}/one").ok


def test_one_without_registered_arguments_gets_what_the_caller_gives(place):
    with hf.Checkpointer(Duck()) as checkpointer:
        checkpointer.save(f"{place}/one", VALUE, indent=2)
        assert checkpointer.handler.saved == ((VALUE,), {"indent": 2})
        assert checkpointer.restore(f"{place}/one", upper=True) == {"TEXT": "é", "N": 3}
        assert checkpointer.restore(f"{place}/one") == VALUE


def test_users_handlers_and_holdfasts_are_items_of_one_checkpoint(place):
    registry = hf.DefaultCheckpointHandlerRegistry()
    registry.add("later", LaterSave, Later)
    registry.add("later", LaterRestore)
    handler = hf.CompositeCheckpointHandler(handler_registry=registry)
    items = a.Composite(
        archive=ArchiveSave(VALUE),
        later=LaterSave([1, 2]),
        state=a.StandardSave({"w": np.arange(3)}),
        config=a.JsonSave({"n": 1}),
    )
    with hf.Checkpointer(handler) as checkpointer:
        checkpointer.save(f"{place}/all", args=items)
        found = checkpointer.restore(f"{place}/all")
        assert (found.archive, found.later, found.config) == (VALUE, [1, 2], {"n": 1})
    fresh = hf.Checkpointer(hf.CompositeCheckpointHandler())
    found = fresh.restore(f"{place}/all")  # by the strings that are recorded
    assert (found.archive, found.later) == (VALUE, [1, 2])
    some = fresh.restore(f"{place}/all", args=a.Composite(archive=ArchiveRestore()))
    assert dict(some) == {"archive": VALUE}
    assert hf.verify(f"{place}/all").ok


def test_a_handler_without_arguments_is_an_item_by_its_name(place):
    handler = hf.CompositeCheckpointHandler(duck=Duck())
    with hf.Checkpointer(handler) as checkpointer:
        checkpointer.save(f"{place}/x", args=a.Composite(duck=VALUE))
        assert checkpointer.restore(f"{place}/x").duck == VALUE
        assert checkpointer.restore(f"{place}/x", args=a.Composite(duck=None)).duck == VALUE
    with pytest.raises(ValueError, match=r"'duck' was saved by .*\.Duck, which is not known"):
        hf.Checkpointer(hf.CompositeCheckpointHandler()).restore(f"{place}/x")


def test_metadata_asks_the_users_handler(place):
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(f"{place}/x", args=a.Composite(it=ArchiveSave(VALUE), n=a.JsonSave(1)))
        found = checkpointer.metadata(f"{place}/x").item_metadata
        assert (found["it"], found["n"]) == ({"files": ["part-0", "part-1"]}, None)
    with hf.Checkpointer(Archive()) as checkpointer:
        checkpointer.save(f"{place}/flat", args=ArchiveSave(VALUE))
        assert checkpointer.metadata(f"{place}/flat").item_metadata["files"][:1] == ["part-0"]
    with hf.Checkpointer(Duck()) as checkpointer:
        checkpointer.save(f"{place}/duck", VALUE)
        assert checkpointer.metadata(f"{place}/duck").item_metadata is None


def test_its_string_is_recorded_and_finds_it_again(place):
    with hf.Checkpointer(Archive()) as checkpointer:
        checkpointer.save(f"{place}/x", args=ArchiveSave(VALUE))
        assert checkpointer.metadata(f"{place}/x").item_handlers == "mine.Archive"
    assert hf.Checkpointer(Archive()).restore(f"{place}/x") == VALUE


def test_the_steps_of_a_save_come_in_order_and_the_commit_is_last(place):
    log = []

    class Telling(Duck):
        def save(self, directory, item):
            log.append(("save", directory.exists(), threading.current_thread().name))
            super().save(directory, item)

        def finalize(self, directory):
            log.append(("finalize", (directory / "item.json").exists(), committed()))

        def close(self):
            log.append(("close",))

    def committed():
        return hf.is_checkpoint(f"{place}/x")

    with hf.Checkpointer(Telling()) as checkpointer:
        checkpointer.save(f"{place}/x", VALUE)
    caller = threading.current_thread().name
    assert log == [("save", True, caller), ("finalize", True, False), ("close",)]


def test_it_gets_an_epath_of_a_real_folder_and_restores_in_the_callers_thread(place):
    seen = []

    class Seeing(Duck):
        def save(self, directory, item):
            seen.append((type(directory), os.path.isdir(os.fspath(directory))))
            super().save(directory, item)

        def restore(self, directory):
            seen.append((threading.current_thread(), (directory / "item.json").exists()))
            return super().restore(directory)

    with hf.Checkpointer(Seeing()) as checkpointer:
        checkpointer.save(f"{place}/x", VALUE)
        checkpointer.restore(f"{place}/x")
    assert issubclass(seen[0][0], epath.Path)
    assert seen[0][1]
    assert seen[1] == (threading.current_thread(), True)


def test_a_save_behind_the_caller_has_read_the_item_when_it_returns(place):
    item = {"n": 1}
    gate = threading.Event()
    with hf.AsyncCheckpointer(Later(gate)) as checkpointer:
        checkpointer.save(f"{place}/x", args=LaterSave(item))
        item["n"] = 2
        assert not hf.is_checkpoint(f"{place}/x")
        gate.set()
        checkpointer.wait_until_finished()
        assert checkpointer.restore(f"{place}/x") == {"n": 1}
    item = {"n": 1}
    with hf.AsyncCheckpointer(Archive()) as checkpointer:  # its save is not asynchronous
        checkpointer.save(f"{place}/y", args=ArchiveSave(item))
        item["n"] = 2
        assert checkpointer.restore(f"{place}/y") == {"n": 1}


def test_async_save_works_inside_a_running_event_loop(place):
    async def training():
        with hf.AsyncCheckpointer(Later()) as checkpointer:
            checkpointer.save(f"{place}/x", args=LaterSave(VALUE))
            return checkpointer.restore(f"{place}/x")

    assert asyncio.run(training()) == VALUE


def test_a_handler_of_futures_may_be_called_directly(tmp_path):
    Later().save(epath.Path(tmp_path), LaterSave(VALUE))
    assert Later().restore(epath.Path(tmp_path)) == VALUE


class Unlucky(Exception):
    pass


class Failing(Duck):
    def __init__(self, where):
        super().__init__()
        self.where = where

    def save(self, directory, item):
        super().save(directory, item)
        if self.where == "save":
            raise Unlucky("in save")

    def finalize(self, directory):
        if self.where == "finalize":
            raise Unlucky("in finalize")

    def restore(self, directory):
        raise Unlucky("in restore")


@pytest.mark.parametrize("where", ["save", "finalize"])
@pytest.mark.parametrize("checkpointer", [hf.Checkpointer, hf.AsyncCheckpointer])
def test_what_a_handler_raises_keeps_its_type_and_nothing_stays(where, checkpointer, place):
    made = checkpointer(Failing(where))
    with pytest.raises(Unlucky, match=f"in {where}"):
        made.save(f"{place}/x", VALUE)
        made.wait_until_finished()
    assert not hf.is_checkpoint(f"{place}/x")
    if not place.startswith("memory:"):
        assert list(Path(place).iterdir()) == []
    hf.save(f"{place}/x", {"w": 1})  # the place is free


def test_what_a_restore_raises_keeps_its_type(place):
    with hf.Checkpointer(Failing("restore")) as checkpointer:
        checkpointer.save(f"{place}/x", VALUE)
        with pytest.raises(Unlucky, match="in restore"):
            checkpointer.restore(f"{place}/x")


def test_a_failed_future_is_told_after_the_others_have_ended_and_nothing_stays(place):
    ended = []

    class Half(Duck):
        async def async_save(self, directory, item):
            pool = concurrent.futures.ThreadPoolExecutor(2)

            def fail():
                raise Unlucky("in a future")

            def write():
                time.sleep(0.05)
                (directory / "late").write_text("x")
                ended.append(True)

            futures = [pool.submit(fail), pool.submit(write)]
            pool.shutdown(wait=False)
            return futures

    with pytest.raises(Unlucky, match="in a future"), hf.AsyncCheckpointer(Half()) as made:
        made.save(f"{place}/x", VALUE)
    assert ended == [True]
    assert not hf.is_checkpoint(f"{place}/x")


def test_an_interrupt_in_a_handler_stops_the_save(place):
    class Interrupted(Duck):
        def save(self, directory, item):
            raise KeyboardInterrupt

    checkpointer = hf.Checkpointer(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save(f"{place}/x", VALUE)
    hf.save(f"{place}/x", {"w": 1})


def test_a_save_that_is_cancelled_as_it_removes_its_spool_removes_it(monkeypatch):
    begun, ended, remove = threading.Event(), threading.Event(), ItemFolder.discard

    async def discard(self, worker):
        begun.set()
        await asyncio.sleep(0.2)
        await remove(self, worker)
        ended.set()

    monkeypatch.setattr(ItemFolder, "discard", discard)
    checkpointer = hf.AsyncCheckpointer(Duck())
    checkpointer.save("memory://cancelled/x", VALUE)
    begun.wait()
    checkpointer.cancel()
    assert ended.is_set()
    assert not hf.is_checkpoint("memory://cancelled/x")


def test_a_save_that_is_cancelled_waits_for_the_handler_and_leaves_nothing(place):
    gate = threading.Event()
    checkpointer = hf.AsyncCheckpointer(Later(gate))
    checkpointer.save(f"{place}/x", args=LaterSave(VALUE))
    threading.Timer(0.1, gate.set).start()
    checkpointer.cancel()
    assert gate.is_set()
    assert not hf.is_checkpoint(f"{place}/x")


def test_a_failed_item_leaves_no_spool_of_the_others(place):
    handler = hf.CompositeCheckpointHandler(good=Duck(), bad=Failing("finalize"))
    with pytest.raises(Unlucky):
        hf.Checkpointer(handler).save(f"{place}/x", args=a.Composite(good=VALUE, bad=VALUE))
    assert not hf.is_checkpoint(f"{place}/x")


# --- what lies in the folder ------------------------------------------------------------------


class Writing(Duck):
    """Writes what a function tells it to, and reads everything back."""

    def __init__(self, write):
        super().__init__()
        self._write = write

    def save(self, directory, item=None):
        self._write(Path(os.fspath(directory)))

    def restore(self, directory):
        base = Path(os.fspath(directory))
        ours = {"_CHECKPOINT_METADATA", "commit_success.txt"}
        return {
            path.relative_to(base).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(base.rglob("*"))
            if path.name not in ours and not path.name.startswith("_")
        }


def test_every_file_comes_back_at_any_depth_and_so_do_empty_folders(place):
    def write(folder):
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "deep").write_bytes(b"1" * 100)
        (folder / ".hidden").write_bytes(b"")
        (folder / "empty" / "er").mkdir(parents=True)

    with hf.Checkpointer(hf.CompositeCheckpointHandler(it=Writing(write))) as checkpointer:
        checkpointer.save(f"{place}/x", args=a.Composite(it=0))
        assert checkpointer.restore(f"{place}/x").it == {
            ".hidden": b"",
            "a": None,
            "a/b": None,
            "a/b/deep": b"1" * 100,
            "empty": None,
            "empty/er": None,
        }
        hf.copy(f"{place}/x", f"{place}/y")
        hf.copy(f"{place}/y", "memory://foreign/empty", overwrite=True)
        for copy in (f"{place}/y", "memory://foreign/empty"):
            assert checkpointer.restore(copy).it == checkpointer.restore(f"{place}/x").it
    assert hf.verify(f"{place}/x").ok


def test_an_item_without_any_file_is_an_item(place):
    with hf.Checkpointer(hf.CompositeCheckpointHandler(it=Writing(lambda _: 0))) as checkpointer:
        checkpointer.save(f"{place}/x", args=a.Composite(it=0))
        assert set(checkpointer.restore(f"{place}/x").it) <= {".holdfast-empty-folder"}


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda folder: (folder / "link").symlink_to("/etc/hosts"), "'link'.*a symbolic link"),
        (lambda folder: (folder / "link").symlink_to("/tmp"), "'link'.*a symbolic link"),
        (lambda folder: os.mkfifo(folder / "pipe"), "'pipe'.*no plain file"),
        (lambda folder: (folder / "_COMMIT.json").write_text("{}"), "_COMMIT.json.*another"),
        (lambda folder: (folder / ".holdfast-empty-folder").write_text("x"), "choose another"),
    ],
    ids=["link", "link to a folder", "pipe", "the commit's name", "an empty folder's name"],
)
def test_what_cannot_be_in_a_checkpoint_is_refused_and_nothing_stays(write, told, place):
    with pytest.raises(hf.errors.UnsavableFileError, match=told):
        hf.Checkpointer(Writing(write)).save(f"{place}/x")
    assert not hf.is_checkpoint(f"{place}/x")


# --- the spool, damage, and what is registered -------------------------------------------------


def test_more_than_the_spool_may_hold_is_refused_and_nothing_stays(spools):
    place = "memory://spool/limit"
    small = hf.Context(file=hf.options.FileOptions(spool_bytes=50, spool_directory=str(spools)))
    large = Writing(lambda folder: (folder / "large").write_bytes(b"x" * 51))
    with pytest.raises(hf.errors.SpoolFullError, match=r"are 51 bytes.*may hold 50.*spool_bytes"):
        hf.Checkpointer(large, context=small).save(f"{place}/x")
    assert not hf.is_checkpoint(f"{place}/x")
    hf.Checkpointer(large).save(f"{place}/x")
    with pytest.raises(hf.errors.SpoolFullError):
        hf.Checkpointer(large, context=small).restore(f"{place}/x")
    assert hf.Checkpointer(large).restore(f"{place}/x") == {"large": b"x" * 51}
    with pytest.raises(ValueError, match="spool_bytes"):
        hf.options.FileOptions(spool_bytes=0)


@pytest.mark.parametrize("change", ["bytes", "length", "removal"])
def test_damage_to_a_users_file_is_found_before_the_handler_sees_it(change, tmp_path):
    with hf.Checkpointer(Archive()) as checkpointer:
        checkpointer.save(tmp_path / "x", args=ArchiveSave(VALUE))
        file = tmp_path / "x" / "part-1"
        data = file.read_bytes()
        if change == "removal":
            file.unlink()
        else:
            file.write_bytes(data[:-1] if change == "length" else data[:-1] + b"?")
        with pytest.raises(hf.errors.DamagedCheckpointError, match="part-1"):
            checkpointer.restore(tmp_path / "x")
    report = hf.verify(tmp_path / "x")
    assert not report.ok
    assert "part-1" in report.problems[0]


def test_two_saves_with_one_composite_handler_do_not_meet(place):
    handler = hf.CompositeCheckpointHandler()
    first = hf.AsyncCheckpointer(handler)
    second = hf.AsyncCheckpointer(handler)
    first.save(f"{place}/1", args=a.Composite(it=ArchiveSave([1]), s=a.StandardSave({"n": 1})))
    second.save(f"{place}/2", args=a.Composite(it=ArchiveSave([2]), s=a.StandardSave({"n": 2})))
    assert second.restore(f"{place}/2").it == [2]
    assert first.restore(f"{place}/1").it == [1]
    assert first.restore(f"{place}/2").s == {"n": 2}


def test_a_string_belongs_to_one_class_and_may_be_defined_again():
    def define():
        class Mine(Duck):
            @classmethod
            def typestr(cls):
                return "mine.of.one.class"

        return Mine

    class Another(Duck):
        @classmethod
        def typestr(cls):
            return "mine.of.one.class"

    def args():
        class Args(a.CheckpointArgs):
            pass

        return Args

    a.register_with_handler(define(), for_save=True, for_restore=True)(args())
    a.register_with_handler(define(), for_save=True, for_restore=True)(args())
    taken = args()
    with pytest.raises(ValueError, match=r"'mine.of.one.class', by which .*Mine is known"):
        a.register_with_handler(Another, for_save=True)(taken)
    with pytest.raises(ValueError, match="no handler is registered"):
        a.get_registered_handler_cls(taken)


def test_what_is_no_handler_is_refused_with_what_it_lacks():
    class OnlySaves:
        def save(self, directory):
            pass

    class OfTheNewKind:
        async def save(self, directory, value):
            pass

        async def load(self, directory, value):
            pass

    class Nothing(hf.CheckpointHandler):
        pass

    for given, told in (
        (OnlySaves(), "lacks the method 'restore'"),
        (OfTheNewKind(), "its 'save' is a coroutine"),
        (Nothing(), "neither 'save' and 'restore' nor 'stage'"),
        (3, "got int: it lacks the method 'save' and 'restore'"),
    ):
        with pytest.raises(TypeError, match=told):
            hf.Checkpointer(given)
        with pytest.raises(TypeError, match=f"item 'x': .*{told}"):
            hf.CompositeCheckpointHandler(x=given)


def test_a_registry_may_hold_several_arguments_and_any_item(place):
    registry = hf.DefaultCheckpointHandlerRegistry()
    archive = Archive()
    registry.add(None, ArchiveSave, archive)
    registry.add(None, ArchiveRestore, archive)
    handler = hf.CompositeCheckpointHandler(handler_registry=registry)
    assert set(registry.get_all_entries()) == {(None, ArchiveSave), (None, ArchiveRestore)}
    with hf.Checkpointer(handler) as checkpointer:
        checkpointer.save(f"{place}/x", args=a.Composite(one=ArchiveSave(1), n=a.JsonSave(2)))
        found = checkpointer.restore(f"{place}/x", args=a.Composite(one=None, n=None))
        assert dict(found) == {"one": 1, "n": 2}
        with pytest.raises(ValueError, match="'n' is handled by JsonCheckpointHandler"):
            checkpointer.save(f"{place}/y", args=a.Composite(n=a.StandardSave({"n": 1})))
        with pytest.raises(ValueError, match="'new' was given None"):
            checkpointer.restore(f"{place}/x", args=a.Composite(new=None))
        with pytest.raises(KeyError, match="has no item 'new'"):
            checkpointer.restore(f"{place}/x", args=a.Composite(new=ArchiveRestore()))
    assert set(registry.get_all_entries()) == {(None, ArchiveSave), (None, ArchiveRestore)}
