"""``vdi-ext backup --snapshot`` and the restore of what it took."""

import argparse

from .. import jobs
from . import output
from .events import consumers
from .options import password


def add_backup_options(backup: argparse.ArgumentParser) -> None:
    group = backup.add_argument_group("snapshots", "several SOURCEs are frozen together")
    group.add_argument("--snapshot", action="store_true", help="freeze the databases and have their files copied")
    group.add_argument("--freeze-command", metavar="CMD", help="shell command that copies the files of the databases")
    group.add_argument(
        "--freeze-timeout", type=float, default=60.0, metavar="SECONDS", help="most that they may be frozen (60)"
    )


def add_restore_options(restore: argparse.ArgumentParser) -> None:
    group = restore.add_argument_group("snapshots", "as many TARGETs as the snapshot has databases")
    group.add_argument("--mount-command", metavar="CMD", help="shell command that puts the files of a snapshot back")
    group.add_argument("--mount-timeout", type=float, metavar="SECONDS", help="most that it may take (no limit)")


def backup(options: argparse.Namespace) -> int:
    if not options.freeze_command:
        raise jobs.ArgumentError("--snapshot takes --freeze-command CMD: what copies the files")
    if options.kind != "full":
        raise jobs.ArgumentError("a snapshot is a full backup")
    _refuse(options, "devices", "format", "no_truncate", "name", "description")
    secret = password(options, *options.source)
    with consumers(options) as events, output.progress(options) as progress:
        result = jobs.backup_snapshot(
            options.source, options.target, freeze_command=options.freeze_command,
            freeze_timeout=options.freeze_timeout, copy_only=options.copy_only, progress=progress, events=events,
            password=secret, **_common(options),
        )  # fmt: skip
    return output.finished(options, result, f"took a snapshot of {', '.join(options.source)}: {result.path}")


def restore(options: argparse.Namespace) -> int:
    _refuse(options, "verify_first", "standby", "stop_at", "move")
    secret = password(options, *options.target)
    with consumers(options) as events, output.progress(options) as progress:
        result = jobs.restore_snapshot(
            options.source, options.target, mount_command=options.mount_command, mount_timeout=options.mount_timeout,
            replace=options.replace, norecovery=options.norecovery, progress=progress, events=events,
            password=secret, **_common(options),
        )  # fmt: skip
    return output.finished(options, result, f"restored {', '.join(options.target)} from the snapshot {result.path}")


def one(options: argparse.Namespace, name: str) -> str:
    """The only source or target of what is no snapshot."""
    if getattr(options, "freeze_command", None):
        raise jobs.ArgumentError("--freeze-command is for --snapshot")
    values: list[str] = getattr(options, name)
    if len(values) > 1:
        raise jobs.ArgumentError(f"one {name.upper()} is wanted; only snapshots take several")
    return values[0]


def _refuse(options: argparse.Namespace, *names: str) -> None:
    """Nothing that is asked for is ignored."""
    for name in names:
        if getattr(options, name):
            raise jobs.ArgumentError(f"--{name.replace('_', '-')} has no meaning for a snapshot")


def _common(options: argparse.Namespace) -> dict:
    _refuse(options, "buffer_count", "max_transfer_size", "stats", "no_complete", "sql", "print_sql")
    name = options.database
    return {
        "databases": name if jobs.is_selector(name) else name and [name],
        "provider": options.provider,
        "block_size": options.block_size,
        "checksum": options.checksum,
        "own_process": not options.in_process,
        "with_options": options.with_options,
        "group": options.group,
    }
