"""What is said where Ray is not installed."""

import sys

from keras_rtrl.train import cli


def test_actors_name_what_is_missing(train, tmp_path, capsys, monkeypatch):
    run, apart = str(tmp_path / "run"), str(tmp_path / "apart")
    assert train("--frames", "40", "--out", run) == 0
    monkeypatch.setitem(sys.modules, "ray", None)
    says = 'keras-rtrl: error: actors need Ray: pip install "keras_rtrl[ray]"'
    assert train("--frames", "40", "--out", apart, "--actors", "2") == 2
    assert says in capsys.readouterr().err
    assert cli.main(["evaluate", run, "--actors", "2"]) == 2
    assert says in capsys.readouterr().err
