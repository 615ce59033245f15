"""The records on disk: the only code that touches the data folder. :mod:`app.records.layout` draws its tree.

Nothing here decides what should exist (the job table does): files appear whole or not at all, are found by name, and go.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.parameters import TYPES
from app.records import layout as names
from app.records.atomic import suffix, write_files
from app.records.errors import BadDocument, BadImage, MissingFile
from app.records.files import StoredFile, find, list_files, scan, translated
from app.records.folder import DataFolder
from app.records.images import sniff
from app.records.layout import FileName, Variant
from app.records.variants import Source, StoredVariant, Variants
from app.runtime.failpoints import UNWATCHED, Failpoints

#: Attempts to create a folder that a concurrent removal may delete while it is empty.
_MOST_TRIES = 8
#: With more possible names than this, listing the folder costs less than trying them.
_MOST_NAMES = 5000
_VARIANT_BYTES = 2**30
_VARIANT_MAKERS = 16
#: The document goes first, so that a half-deleted record can't be indexed again from its folder.
_REMOVAL_ORDER = {"document": 0, "image": 1, "init": 2}


class RecordStore:
    """The files of all records below one folder. Threads and processes may share it."""

    def __init__(
        self,
        root: Path,
        failpoints: Failpoints = UNWATCHED,
        variant_bytes: int = _VARIANT_BYTES,
        variant_makers: int = _VARIANT_MAKERS,
    ) -> None:
        """:param variant_bytes: the disk space for variants of images.
        :param variant_makers: how many threads may make variants at a time, or wait for one that is being made.
        """
        self.folder = DataFolder(root, failpoints)
        self.variants = Variants(root, variant_bytes, variant_makers, failpoints)
        self._root = str(root)
        self._failpoints = failpoints

    # Writing.

    def save_init(self, user_id: str, type_: str, name: str, png: bytes) -> str:
        """Store the reference image of a job and return its file name.

        :raises StorageFailed: nothing was stored.
        """
        return self._save(user_id, type_, name, [(names.init_filename(name), png)])[0]

    def save(
        self,
        user_id: str,
        type_: str,
        name: str,
        attempt: int,
        images: Sequence[tuple[str, bytes]],
        document: dict[str, Any] | None = None,
    ) -> list[str]:
        """Store the images of one attempt and its parameter document; return their file names in that order.

        The document is JSON (RFC 8259) in UTF-8, and appears when all images have.

        :param images: the file name (:func:`app.records.layout.image_filename`) and the bytes of each.
        :raises StorageFailed: none of them was stored.
        :raises ValueError: a file name is not one of this attempt's.
        """
        files = list(images)
        for filename, _ in files:
            parsed = names.parse_filename(filename)
            if parsed is None or (parsed.kind, parsed.name, parsed.attempt) != ("image", name, attempt):
                raise ValueError(f"{filename!r} is no file name of an image of this attempt")
        if document is not None:
            files.append((names.document_filename(name, attempt), _dump(document)))
        return self._save(user_id, type_, name, files)

    def _save(self, user_id: str, type_: str, name: str, files: Sequence[tuple[str, bytes]]) -> list[str]:
        folder = self._folder(user_id, type_, name)
        with translated("written"):
            for _ in range(_MOST_TRIES - 1):
                # The deletion of a folder's last record may remove the folder before the first file is there.
                with suppress(FileNotFoundError):
                    return self._save_once(folder, files)
            # Where the data folder itself is gone, nothing helps.
            return self._save_once(folder, files)

    def _save_once(self, folder: Path, files: Sequence[tuple[str, bytes]]) -> list[str]:
        self.folder.make(folder)
        write_files(folder, files, self._failpoints, lambda: self.folder.keep_durable(folder))
        return [filename for filename, _ in files]

    # Reading.

    def path(self, user_id: str, type_: str, filename: str) -> Path:
        """:meth:`place` as a Path."""
        return Path(self.place(user_id, type_, filename))

    def place(self, user_id: str, type_: str, filename: str) -> str:
        """The path of an existing file, as text: making a Path takes longer than finding the file.

        Any text may be given: only names that the gateway writes can be found. A symbolic link below the data folder is never
        followed: it may lead out of it.

        :raises MissingFile: when there is no such file.
        """
        place, status = find(self._root, _parts(user_id, type_, filename))
        if not stat.S_ISREG(status.st_mode):
            raise MissingFile
        return place

    def variant(self, user_id: str, type_: str, filename: str, variant: Variant) -> StoredVariant:
        """An image in another size or format, made unless it was made before; never larger than the image.

        :raises MissingFile: there is no such image, whether or not there is a variant of it.
        :raises DamagedImage: it can't be shown any more.
        :raises TooLargeForFormat: a side of it is.
        :raises VariantsBusy: it is not made yet, and as many threads as may are making variants.
        :raises StorageFailed: it can't be read.
        """
        return self.variants.get(Source(_parts(user_id, type_, filename)), variant)

    def read_init(self, user_id: str, type_: str, name: str) -> bytes:
        """The reference image of a job, a PNG.

        :raises MissingFile: when there is none.
        """
        path = self.path(user_id, type_, name + names.INIT_SUFFIX)
        with translated("read"):
            return path.read_bytes()

    def files_of(self, user_id: str, type_: str, name: str) -> list[StoredFile]:
        """Every file of a record, whatever attempt it is of and unfinished ones too, in the order in which they should go."""
        try:
            folder = self._folder(user_id, type_, name)
        except ValueError:
            return []
        found = [
            (_removal_order(file.parsed, temporary=file.temporary), file)
            for file in list_files(folder, (folder.parts[-3], type_, folder.name))
            if file.parsed is not None and file.parsed.name == name
        ]
        return [file for _, file in sorted(found, key=lambda pair: pair[0])]

    # Removing. Nothing is listed unless the names can't be known: what a removal costs does not depend on its folder.

    def discard(self, user_id: str, type_: str, name: str, attempt: int, *, images: int) -> None:
        """Remove what one attempt has left, finished or not; never the reference image.

        :param images: how many pictures it was to make.
        :raises StorageFailed: some file could not be removed.
        """
        self._remove(user_id, type_, name, _with_temporaries(names.filenames_of(name, [attempt], images)))

    def remove(
        self, user_id: str, type_: str, name: str, *, claims: int, images: int | None, reference: bool = True
    ) -> list[str]:
        """Remove every file of a record, of whatever attempt, documents first; return the names of the finished ones.

        Folders that are empty then go, too.

        :param claims: the number of its last attempt.
        :param images: how many pictures an attempt was to make; None where nobody knows, and then the folder is listed.
        :param reference: False keeps the reference image.
        :raises StorageFailed: some file could not be removed; a repetition goes on from there.
        """
        if images is None or claims * images * len(names.EXTENSIONS) > _MOST_NAMES:
            files = self.files_of(user_id, type_, name)
            filenames = [
                file.filename for file in files if reference or file.parsed is None or file.parsed.kind != "init"
            ]
        else:
            finished = names.filenames_of(name, range(1, claims + 1), images)
            filenames = _with_temporaries([*finished, name + names.INIT_SUFFIX] if reference else finished)
        removed = self._remove(user_id, type_, name, filenames)
        return [filename for filename in removed if names.parse_filename(filename) is not None]

    def remove_files(self, user_id: str, type_: str, name: str, filenames: Iterable[str]) -> list[str]:
        """Remove these files of a record, in this order, and folders that are empty then; the names of those that were there.

        Any text may be given: nothing but a file of this record is removed.

        :raises StorageFailed: one could not be removed; a repetition goes on from there.
        """
        parsed = [(filename, names.parse_filename(filename)) for filename in filenames]
        own = [
            filename for filename, file in parsed if file is not None and file.name == name and file.kind != "record"
        ]
        return self._remove(user_id, type_, name, own)

    def remove_stored(self, stored: StoredFile) -> bool:
        """Remove a file that :meth:`scan` or :meth:`files_of` found; say whether it was still there.

        :raises ValueError: for a foreign file: those are not ours to remove.
        :raises StorageFailed: it could not be removed.
        """
        if stored.parsed is None:
            raise ValueError("a foreign file is never removed")
        removed = self._unlink(str(stored.path))
        self.folder.remove_empty(stored.path.parent)
        return removed

    def _remove(self, user_id: str, type_: str, name: str, filenames: Collection[str]) -> list[str]:
        try:
            folder = self._folder(user_id, type_, name)
        except ValueError:
            return []
        if any(step.is_symlink() for step in (folder, folder.parent, folder.parent.parent)):
            # It may lead out of the data folder.
            return []
        removed = [filename for filename in filenames if self._unlink(f"{folder}/{filename}")]
        if removed:
            self.folder.flush_removals(folder)
        self.folder.remove_empty(folder)
        # Behind the images, see app/records/variants.py; also of those that an earlier try has removed.
        self.variants.remove((folder.parts[-3], type_, folder.name), filenames)
        return removed

    def _unlink(self, place: str) -> bool:
        with translated("removed"):
            try:
                if not stat.S_ISREG(os.lstat(place).st_mode):
                    return False
                with self._failpoints.around(f"unlink {suffix(place)}"):
                    os.unlink(place)  # noqa: PTH108 -- no Path for each name; see app/records/atomic.py
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    # The whole tree, for sweep, verify and reindex.

    def scan(self) -> Iterator[StoredFile]:
        """Every regular file of the data folder; see :func:`app.records.files.scan`.

        :raises StorageFailed: when one of our folders can't be read.
        """
        return scan(self.folder.root)

    def has(self, stored: StoredFile) -> bool:
        """Whether a file that :meth:`scan` found is still there."""
        return stored.path.exists()

    def read_stored(self, stored: StoredFile) -> dict[str, Any]:
        """The parameter document that :meth:`scan` found, for which no user id is needed.

        :raises MissingFile: when it has gone.
        :raises BadDocument: when it is damaged.
        """
        with translated("read"):
            return _load(stored.path.read_bytes())

    def verify_file(self, path: Path) -> None:
        """Prove that a file of ours opens: an image is whole and of the format its name says, a document is a JSON object.

        :raises MissingFile: when it is not there.
        :raises BadImage: for a damaged image.
        :raises BadDocument: for a damaged document.
        """
        parsed = names.parse_filename(path.name)
        if parsed is None or parsed.kind == "record":
            raise MissingFile
        with translated("read"):
            data = path.read_bytes()
        if parsed.kind == "document":
            _load(data)
        elif sniff(data).extension != parsed.extension:
            raise BadImage("The image is not of the format that its name says.")

    def _folder(self, user_id: str, type_: str, name: str) -> Path:
        """The day folder of a record; raises ``ValueError`` when these can't be a record's."""
        parsed = names.parse_filename(name)
        if type_ not in TYPES or parsed is None or parsed.kind != "record":
            raise ValueError("no record can have this type and name")
        return self.folder.root.joinpath(names.user_folder(user_id), type_, names.day_of(name))


def _with_temporaries(filenames: Sequence[str]) -> list[str]:
    return [*filenames, *map(names.temporary_filename, filenames)]


def _parts(user_id: str, type_: str, filename: str) -> tuple[str, str, str, str]:
    """The folders below the data folder in which a file of this name would lie, and its name."""
    parsed = names.parse_filename(filename)
    if parsed is None or parsed.kind == "record" or type_ not in TYPES:
        raise MissingFile
    try:
        folder = names.user_folder(user_id)
    except ValueError as error:
        raise MissingFile from error
    return folder, type_, names.day_of(parsed.name), filename


def _removal_order(parsed: FileName, *, temporary: bool) -> tuple[bool, int, int, int]:
    return temporary, _REMOVAL_ORDER[parsed.kind], parsed.attempt or 0, parsed.index or 0


def _dump(document: dict[str, Any]) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        # A WebUI's text may hold an unpaired surrogate, which UTF-8 can't; escaped it survives.
        return json.dumps(document, allow_nan=False).encode("ascii")


def _load(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadDocument from error
    if not isinstance(document, dict):
        raise BadDocument
    return document
