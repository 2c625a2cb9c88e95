"""What is said of a set: its manifest, and the errors of a store."""

import datetime
import hashlib
import json
import re
import uuid
from dataclasses import asdict, dataclass, field, fields

MANIFEST = "manifest.json"
PARTIAL = ".partial"
FORMAT = "vdi-ext backup set"
FORMAT_VERSION = 1
STATES = ("writing", "prepared", "confirmed", "failed")
STRIPE_NAME = re.compile(r"stripe-\d{2}-of-\d{2}\.bak")

_DIGEST = re.compile(r"[0-9a-f]{64}")


class StorageError(Exception):
    """A store could not be written, read or changed; the message says what to do."""


class SetInUseError(StorageError):
    """Another process is at work on the set."""


class VerificationError(Exception):
    """Stored data are not what was stored.

    Attributes
    ----------
    problems : tuple of str
        One line for each stripe that is wrong, missing or foreign.
    """

    def __init__(self, problems: str | tuple[str, ...]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("; ".join(self.problems))

    def __reduce__(self) -> tuple:
        return type(self), (self.problems,)


def now() -> str:
    """The time in UTC, as manifests carry it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass
class Stripe:
    """What a manifest says about one stripe.

    Attributes
    ----------
    number : int
        1 for the first device.
    file : str
        Name within the set's directory.
    size : int
        Durable bytes.
    sha256 : str
        Hexadecimal digest of these bytes.
    complete : bool
        The device has flushed (or completed) and nothing was written since.
    """

    number: int
    file: str
    size: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    complete: bool = False


@dataclass
class Manifest:
    """The description of one set, stored beside its stripes as JSON.

    Attributes
    ----------
    snapshot : list of dict or None
        Of a snapshot: for each stripe the ``"database"``, its ``"source"`` and the ``"files"`` that were frozen.
    """

    state: str
    stripes: list[Stripe]
    set_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    database: str = ""
    source: str = ""
    statement: str = ""
    tool: str = ""
    created: str = field(default_factory=now)
    finished: str | None = None
    configuration: dict = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    reason: str | None = None
    backup: dict = field(default_factory=dict)  # what it is: GUIDs, LSNs, kind; empty where nobody knows
    snapshot: list[dict] | None = None

    @property
    def size(self) -> int:
        """Bytes of all stripes."""
        return sum(stripe.size for stripe in self.stripes)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse and check a manifest.

        Raises
        ------
        ValueError
            It is no manifest, one of a later version, or contradicts itself.
        """
        try:
            document = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise ValueError("not a manifest of a backup set")
        if document.pop("version", None) != FORMAT_VERSION:
            raise ValueError("written by another version of this program")
        document.setdefault("backup", {})  # earlier ones have none
        kinds: dict[str, type | tuple[type, ...]] = {
            "stripes": list, "backup": dict, "configuration": dict, "messages": list,
            "finished": (str, type(None)), "reason": (str, type(None)), "snapshot": (list, type(None)),
        }  # fmt: skip
        document.setdefault("snapshot", None)  # written before there were any
        names = {f.name for f in fields(cls)}
        if set(document) != names:
            raise ValueError(f"fields missing or unknown: {', '.join(sorted(names ^ set(document)))}")
        for name, value in document.items():
            if not isinstance(value, kinds.get(name, str)):
                raise ValueError(f"{name} is of the wrong type")
        if document["state"] not in STATES:
            raise ValueError("unknown state")
        stripes = [_checked_stripe(number, entry) for number, entry in enumerate(document.pop("stripes"), 1)]
        if not 1 <= len(stripes) <= 64:
            raise ValueError(f"{len(stripes)} stripes, where 1 to 64 are possible")
        if document["snapshot"] is not None and not _is_snapshot(document["snapshot"], len(stripes)):
            raise ValueError("the snapshot is described wrongly")
        if document["state"] in ("prepared", "confirmed") and not all(stripe.complete for stripe in stripes):
            raise ValueError("complete although a stripe is not")
        return cls(stripes=stripes, **document)


def _checked_stripe(number: int, entry: object) -> Stripe:
    if not isinstance(entry, dict) or set(entry) != {f.name for f in fields(Stripe)}:
        raise ValueError(f"stripe {number} is not described")
    stripe = Stripe(**entry)
    if (
        type(stripe.number) is not int
        or stripe.number != number
        or not isinstance(stripe.file, str)
        or not STRIPE_NAME.fullmatch(stripe.file)
        or type(stripe.size) is not int
        or stripe.size < 0
        or not isinstance(stripe.sha256, str)
        or not _DIGEST.fullmatch(stripe.sha256)
        or type(stripe.complete) is not bool
    ):
        raise ValueError(f"stripe {number} is described wrongly")
    return stripe


def _is_snapshot(entries: list, stripes: int) -> bool:
    return len(entries) == stripes and all(
        isinstance(entry, dict)
        and set(entry) == {"database", "source", "files"}
        and isinstance(entry["database"], str)
        and isinstance(entry["source"], str)
        and isinstance(entry["files"], list)
        and all(isinstance(file, str) and file and "\n" not in file for file in entry["files"])
        for entry in entries
    )
