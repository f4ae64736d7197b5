"""The run-time type checker of the tests: beartype, accepting an int where a float is declared."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
