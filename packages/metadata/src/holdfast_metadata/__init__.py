"""Schemas of every JSON document in a holdfast or Orbax checkpoint."""

from holdfast_metadata.attempt import ATTEMPT_FILE, AttemptMark
from holdfast_metadata.commit import COMMIT_FILE, CommitRecord, Trashed
from holdfast_metadata.digest import Digester, digest_bytes, matches_digest
from holdfast_metadata.digests import DIGESTS_DIR, ArrayDigests, ChunkDigests
from holdfast_metadata.dtypes import dtype_from_name, dtype_name
from holdfast_metadata.errors import (
    HoldfastError,
    MetadataError,
    NewerFormatError,
    NotJsonError,
)
from holdfast_metadata.json_codec import (
    canonical_json,
    constants_json,
    ordered_json,
    parse_json,
    require_json,
)
from holdfast_metadata.keys import Key
from holdfast_metadata.lease import (
    LEASE_DIR,
    LEASE_FIELD,
    Lease,
    epoch_of,
    lease_epoch,
    lease_name,
)
from holdfast_metadata.manifest import MANIFEST_FILE, Manifest, ManifestEntry
from holdfast_metadata.pin import COLLECTING_DIR, PINS_DIR, Collecting, Pin
from holdfast_metadata.quarantine import QUARANTINE_DIR, QuarantineMark
from holdfast_metadata.reader import READERS_DIR, ReaderLease
from holdfast_metadata.scalars import decode_scalar, encode_scalar
from holdfast_metadata.trash import TrashTicket
from holdfast_metadata.tree import (
    LEAF_KINDS,
    TREE_FILE,
    CustomNode,
    DictNode,
    LeafNode,
    LeafSpec,
    NamedTupleNode,
    Node,
    NoneNode,
    SequenceNode,
    TreeDocument,
)

__all__ = [
    "ATTEMPT_FILE",
    "COLLECTING_DIR",
    "COMMIT_FILE",
    "DIGESTS_DIR",
    "LEAF_KINDS",
    "LEASE_DIR",
    "LEASE_FIELD",
    "MANIFEST_FILE",
    "PINS_DIR",
    "QUARANTINE_DIR",
    "READERS_DIR",
    "TREE_FILE",
    "ArrayDigests",
    "AttemptMark",
    "ChunkDigests",
    "Collecting",
    "CommitRecord",
    "CustomNode",
    "DictNode",
    "Digester",
    "HoldfastError",
    "Key",
    "LeafNode",
    "LeafSpec",
    "Lease",
    "Manifest",
    "ManifestEntry",
    "MetadataError",
    "NamedTupleNode",
    "NewerFormatError",
    "Node",
    "NoneNode",
    "NotJsonError",
    "Pin",
    "QuarantineMark",
    "ReaderLease",
    "SequenceNode",
    "TrashTicket",
    "Trashed",
    "TreeDocument",
    "canonical_json",
    "constants_json",
    "decode_scalar",
    "digest_bytes",
    "dtype_from_name",
    "dtype_name",
    "encode_scalar",
    "epoch_of",
    "lease_epoch",
    "lease_name",
    "matches_digest",
    "ordered_json",
    "parse_json",
    "require_json",
]
