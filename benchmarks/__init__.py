"""What the package costs, measured against the least that the machine allows. See README.md beside this file."""
