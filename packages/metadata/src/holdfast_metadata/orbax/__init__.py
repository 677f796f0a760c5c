"""Orbax's documents: written so that every Orbax reader accepts them, read as tolerantly.

Facts from checkpoints that orbax-checkpoint 0.12.8 wrote and read.
"""

from holdfast_metadata.orbax.array_metadata import (
    ARRAY_METADATA_DIR,
    ArrayMetadataEntry,
    ArrayMetadataFile,
)
from holdfast_metadata.orbax.item import ITEM_METADATA_FILE, ItemEntry, ItemMetadata
from holdfast_metadata.orbax.root import ROOT_METADATA_FILE, RootMetadata
from holdfast_metadata.orbax.sharding import SHARDING_FILE, ShardingFile
from holdfast_metadata.orbax.step import STEP_METADATA_FILE, StepMetadata
from holdfast_metadata.orbax.strings import STRINGS_FILE, StringsFile

__all__ = [
    "ARRAY_METADATA_DIR",
    "ITEM_METADATA_FILE",
    "ROOT_METADATA_FILE",
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
