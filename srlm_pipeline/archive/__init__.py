"""A durable copy of what is finished, under any address that fsspec knows.

The project's folder stays the working copy: journals, locks and checkpoints of trainings need a real file system. What
is finished is copied when it is, under the paths that it has there; a manifest that is written last says what counts.
"""

from srlm_pipeline.archive.sync import Archive, open_archive

__all__ = ["Archive", "open_archive"]
