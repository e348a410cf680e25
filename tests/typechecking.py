"""The run-time type checker of the test run: beartype, with integers accepted where floats are."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
