"""Where backup sets rest: one directory per set, one file per stripe, and a manifest that says what they hold.

A set is written under ``NAME.partial/`` and published by one rename to ``NAME/``. The manifest's state says how far
it came, and is durable before it is believed:

=============  ======================================================================================================
``writing``    being written, or its writer died: no backup
``prepared``   every stripe is durable and complete, the statement's outcome is not known: restorable, kept
``confirmed``  the statement succeeded; counts once the directory carries its own name
``failed``     the statement failed: no backup
=============  ======================================================================================================

Everything read back from a manifest is checked before it is used.
"""

from .files import exclusive, remove_set, require_space, unfinished_sets
from .manifest import MANIFEST, PARTIAL, Manifest, SetInUseError, StorageError, Stripe, VerificationError
from .reading import StoredSet, StripeReader
from .writing import SetWriter, StripeWriter

__all__ = [
    "MANIFEST",
    "PARTIAL",
    "Manifest",
    "SetInUseError",
    "SetWriter",
    "StorageError",
    "StoredSet",
    "Stripe",
    "StripeReader",
    "StripeWriter",
    "VerificationError",
    "exclusive",
    "remove_set",
    "require_space",
    "unfinished_sets",
]
