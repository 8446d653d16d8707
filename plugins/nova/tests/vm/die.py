"""nova-compute, that takes a live snapshot and is killed at a point on its way (LIVECLONE_FAULT); see test_failures.py.

python -m tests.vm.die FOLDER URI PID <INSTANCE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nova.tests.functional  # noqa: F401  # before anything of Nova
import pytest
from nova import objects

from .cloud import Cloud, take_the_place_of_nova

if __name__ == "__main__":
    folder, uri, pid = sys.argv[1:]
    take_the_place_of_nova(pytest.MonkeyPatch())
    Cloud(Path(folder), uri, int(pid)).take(objects.Instance.obj_from_primitive(json.load(sys.stdin)))
