"""The files that a job's row owns: said here for deletion, sweep and verification alike."""

from __future__ import annotations

from app.jobs.model import Job
from app.records.layout import document_filename, image_filenames


def has_only_named_files(job: Job) -> bool:
    """Whether the row names every file that there can be: its only attempt succeeded, and no image of it was deleted alone."""
    return job.status == "succeeded" and job.claims == 1 and len(job.images) == batch_size(job)


def unnamed_images(job: Job) -> list[str]:
    """The images that the attempt which succeeded can have made and that were deleted since."""
    named = {image["filename"] for image in job.images}
    return [name for name in image_filenames(job.name, job.claims, batch_size(job) or 0) if name not in named]


def batch_size(job: Job) -> int | None:
    """The number of pictures that each attempt was to make; None for a row that an earlier version emptied when it was deleted."""
    return job.args.get("batch_size")


def files_of(job: Job) -> list[str]:
    """The files that a job's row owns: images, document, reference image (a failed job keeps that until it is deleted)."""
    names = [str(image["filename"]) for image in job.images]
    if job.status == "succeeded":
        names.append(document_filename(job.name, job.claims))
    if job.init_image is not None:
        names.append(job.init_image["filename"])
    return names
