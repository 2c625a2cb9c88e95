"""T-SQL: tokens, and a parser for BACKUP and RESTORE with virtual devices.

An error names the token that it was found at; at the end of the text, the last one. Options that SQL Server has and the
stand-in cannot honour are refused with its number and text, words that are no options with 155: nothing is ignored.
"""

from __future__ import annotations

from .options import refuse
from .parser import Draft, draft, parse
from .statement import Statement
from .tokens import Token, quote_name, quote_string, tokenize

__all__ = ["Draft", "Statement", "Token", "draft", "parse", "quote_name", "quote_string", "refuse", "tokenize"]
