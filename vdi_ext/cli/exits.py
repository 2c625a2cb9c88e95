"""How the program ends."""

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_SQL = 3
EXIT_VDI = 4
EXIT_STORAGE = 5
EXIT_VERIFICATION = 6
EXIT_DOCTOR = 7
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES = """\
exit codes:
  0    success
  1    an error of this program: please report it
  2    wrong usage
  3    the SQL statement failed, or its server was lost
  4    the virtual device interface failed
  5    storage failed: no space, no permission, name taken, no such set
  6    verification failed: a stripe is damaged, missing or foreign
  7    the doctor found something that stops backups
  130  ended by Ctrl-C (SIGINT)
  143  ended by SIGTERM
"""
