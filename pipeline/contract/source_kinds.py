"""The table of source kinds: how sources of each kind are recognised, opened and treated.

The table holds names only, so that the configuration reads it without loading PyAV. CONTRIBUTING.md, "Adding a source
kind", lists what a further one needs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceKindRow:
    """One row of the table."""

    name: str
    """value of `StreamConfig.kind`"""
    opener: str
    """`module:function` that takes the source and `pipeline.source.reader.OpenOptions` and returns a Reader"""
    is_live: bool = False
    """whether the source cannot wait: policy latest by default, and decode reconnects to it"""
    is_sequence: bool = True
    """whether consecutive pictures belong together: instances are tracked by default"""
    extensions: frozenset[str] = frozenset()
    """file name extensions of this kind, in lower case, where FFmpeg or Pillow do not read such files anyway"""
    schemes: frozenset[str] = frozenset()
    """URL schemes of this kind, in lower case; http and https are told apart in `pipeline.source.names`"""


SOURCE_KINDS: dict[str, SourceKindRow] = {
    row.name: row
    for row in [
        SourceKindRow(name="file", opener="pipeline.source.video:open_file"),
        SourceKindRow(name="pictures", opener="pipeline.source.pictures:open_pictures", is_sequence=False),
        SourceKindRow(name="animation", opener="pipeline.source.pictures:open_animation"),
        SourceKindRow(
            name="live", opener="pipeline.source.video:open_live", is_live=True, schemes=frozenset({"rtsp", "rtsps"})
        ),
    ]
}


def kind_of_extension(extension: str) -> str | None:
    """The kind whose row lists a file name extension; None if none does."""
    return next((row.name for row in SOURCE_KINDS.values() if extension.lower() in row.extensions), None)


def kind_of_scheme(scheme: str) -> str | None:
    """The kind whose row lists a URL scheme; None if none does."""
    return next((row.name for row in SOURCE_KINDS.values() if scheme.lower() in row.schemes), None)
