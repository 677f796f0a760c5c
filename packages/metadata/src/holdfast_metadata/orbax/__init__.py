"""Orbax's documents: written so that every Orbax reader accepts them, read as tolerantly.

Facts from checkpoints that orbax-checkpoint 0.12.8 wrote and read.
"""

from holdfast_metadata.orbax.array_metadata import (
    ARRAY_METADATA_DIR,
    ArrayMetadataEntry,
    ArrayMetadataFile,
)
from holdfast_metadata.orbax.item import (
    DICT_KEY,
    ITEM_METADATA_FILE,
    SEQUENCE_KEY,
    ItemEntry,
    ItemMetadata,
)
from holdfast_metadata.orbax.root import (
    LEGACY_ROOT_METADATA_FILE,
    ROOT_METADATA_FILE,
    RootMetadata,
)
from holdfast_metadata.orbax.sharding import SHARDING_FILE, ShardingFile
from holdfast_metadata.orbax.step import STEP_METADATA_FILE, StepMetadata
from holdfast_metadata.orbax.strings import STRINGS_FILE, StringsFile

__all__ = [
    "ARRAY_METADATA_DIR",
    "DICT_KEY",
    "ITEM_METADATA_FILE",
    "LEGACY_ROOT_METADATA_FILE",
    "ROOT_METADATA_FILE",
    "SEQUENCE_KEY",
    "SHARDING_FILE",
    "STEP_METADATA_FILE",
    "STRINGS_FILE",
    "ArrayMetadataEntry",
    "ArrayMetadataFile",
    "ItemEntry",
    "ItemMetadata",
    "RootMetadata",
    "ShardingFile",
    "StepMetadata",
    "StringsFile",
]
