"""The errors of files and images; ``str(error)`` is safe to show to a client."""

from __future__ import annotations

import errno
from typing import ClassVar


class RecordsError(Exception):
    """Base of this package's errors. ``slug`` names the problem in the error table; the text holds no path and no cause."""

    slug: ClassVar[str] = "storage-failed"


class BadImage(RecordsError):
    """Bytes or text that hold no usable image: a client's fault, or a WebUI's when they are its answer."""

    slug = "bad-image"


class BadDocument(RecordsError):
    """A parameter document on disk that is not a JSON object any more."""

    slug = "bad-document"

    def __init__(self) -> None:
        super().__init__("The parameter document of the record is damaged.")


class DamagedImage(RecordsError):
    """A stored image that can't be shown any more."""

    slug = "file-damaged"

    def __init__(self) -> None:
        super().__init__("The stored image is damaged.")


class TooLargeForFormat(RecordsError):
    """A stored image with a longer side than a format can have; another format or a size would do."""

    slug = "validation-failed"

    def __init__(self, media_type: str, longest: int) -> None:
        #: By the parameter of the request, as the problem shows them.
        self.errors = {
            "format": [f"The image is too large for {media_type}, whose sides have at most {longest} pixels."]
        }
        super().__init__("The image is too large for this format; ask for another one, or for a size.")


class VariantsBusy(RecordsError):
    """As many threads as may make variants do so; a variant that is not made yet has to be asked for again."""

    slug = "variants-busy"

    def __init__(self) -> None:
        super().__init__("Too many smaller images are being made now. Ask for this one again.")


class MissingFile(RecordsError):
    """No such file in the data folder, whatever the reason: never written, deleted, or no file name of ours."""

    slug = "file-missing"

    def __init__(self) -> None:
        super().__init__("There is no such file.")


class StorageFailed(RecordsError):
    """The operating system refused to read or write a file; it stands in ``__cause__``.

    ``full`` says that the disk, its inodes or a quota ran out, which trying again at once does not help.
    """

    slug = "storage-failed"

    def __init__(self, cause: OSError, *, doing: str) -> None:
        """:param doing: ``written``, ``read`` or ``removed``: what did not succeed."""
        self.full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = " because its disk is full" if self.full else ""
        super().__init__(f"A file of the record could not be {doing}{reason}.")


class StoreUnavailable(RecordsError):
    """The data folder as a whole cannot take records now."""

    slug = "storage-unavailable"
