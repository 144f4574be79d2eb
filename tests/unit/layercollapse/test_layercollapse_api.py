import subprocess
import sys

import livetune.layercollapse
from livetune.errors import LiveTuneError
from livetune.layercollapse import ArgumentError, CollapseError, LayerCollapseError, PrepareError


def test_all_names_exist_and_are_sorted():
    names = livetune.layercollapse.__all__
    assert names == [name for name in names if hasattr(livetune.layercollapse, name)]
    assert sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name)) == names


def test_every_error_is_ours():
    assert {True} == {issubclass(error, LayerCollapseError) for error in (ArgumentError, CollapseError, PrepareError)}
    assert issubclass(LayerCollapseError, LiveTuneError)
    assert issubclass(ArgumentError, ValueError)


def test_loads_nothing_of_the_daemon():
    code = "import sys, livetune.layercollapse; print([m for m in ('grpc', 'livetuned') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "[]" == done.stdout.strip()
