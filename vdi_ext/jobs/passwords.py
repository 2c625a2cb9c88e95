"""Where a password comes from: never from an address or a command line, and never into a log."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
from collections.abc import Callable

from .common import ArgumentError

Password = str | Callable[[], str]

_COMMAND_TIMEOUT = 60.0  # seconds; it may ask somebody
_LONGEST = 128  # characters, as the server has it


def password_from(
    *, file: str | None = None, variable: str | None = None, command: str | None = None, prompt: str | None = None
) -> str:
    """Get a password.

    Parameters
    ----------
    file : str, optional
        The first line of this file.
    variable : str, optional
        This environment variable.
    command : str, optional
        The first line that this command writes; split as a shell would, run without one.
    prompt : str, optional
        Where none of them is given: ask with these words.

    Raises
    ------
    ArgumentError
        There is none to be had there. The message never repeats what was found.
    """
    if file is not None:
        try:
            with open(file, encoding="utf-8") as opened:
                text = opened.readline()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
            raise ArgumentError(f"the password file {file}: {reason}") from None
        return _checked(text, f"the password file {file}")
    if variable is not None:
        if variable not in os.environ:
            raise ArgumentError(f"the environment variable {variable}, which is to hold the password, is not set")
        return _checked(os.environ[variable], f"the environment variable {variable}")
    if command is not None:
        return _checked(_output(command), "the password command")
    if prompt is not None:
        try:
            return _checked(getpass.getpass(prompt), "what was typed")
        except EOFError:
            pass
    raise ArgumentError("a password is needed: give --password-file, --password-env or --password-command")


def resolve(password: Password | None) -> str | None:
    """The password itself, of what a program gave: text, or a function that returns it."""
    return password() if callable(password) else password


def _output(command: str) -> str:
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_COMMAND_TIMEOUT, check=False
        )
    except (OSError, ValueError, IndexError) as error:
        raise ArgumentError(f"the password command can not be run: {error}") from None
    except subprocess.TimeoutExpired:
        raise ArgumentError(f"the password command said nothing for {_COMMAND_TIMEOUT:.0f} s") from None
    if done.returncode:
        raise ArgumentError(f"the password command ended with code {done.returncode}")
    return done.stdout.decode(errors="replace").partition("\n")[0]


def _checked(text: str, where: str) -> str:
    password = text.rstrip("\r\n")
    if not password or len(password) > _LONGEST or "\0" in password:
        raise ArgumentError(f"{where} holds no password of 1 to {_LONGEST} characters")
    return password
