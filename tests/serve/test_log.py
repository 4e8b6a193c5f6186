import io
import json

from imod_serve.log import PREFIX, LogTail

LOG = """\
(APIServer pid=1) INFO 11-22 01:27:26 [model.py:733] Resolved architecture: AvtForConditionalGeneration
(EngineCore pid=2) INFO 11-22 01:27:43 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config
(EngineCore pid=2) ERROR 11-22 01:30:04 [core.py:1512] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-22 01:30:04 [core.py:1512] ValueError: head_dim=16 is not supported
(APIServer pid=1) Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def tail(tmp_path, text):
    path = tmp_path / "vllm.log"
    path.write_text(text)
    return LogTail(path)


def test_each_stage_is_told_once_while_the_log_grows(tmp_path):
    log = tail(tmp_path, LOG)
    assert list(log.new_stages()) == ["reading the model's configuration", "starting the engine"]
    with log.path.open("a") as file:
        file.write("Starting to load model x\nInitializing a V1 LLM engine\n")
    assert list(log.new_stages()) == ["loading weights"]


def test_the_cause_is_found_behind_its_consequences(tmp_path):
    assert tail(tmp_path, LOG).last_error() == "ValueError: head_dim=16 is not supported"


def test_a_consequence_is_better_than_nothing(tmp_path):
    last = LOG.splitlines()[-1]
    assert tail(tmp_path, last).last_error() == last


def test_a_wrong_flag_is_an_error_line_too(tmp_path):
    line = "vllm serve: error: unrecognized arguments: --nonsense"
    assert tail(tmp_path, f"usage: vllm serve\n{line}\n").last_error() == line


def test_a_log_without_errors_has_none(tmp_path):
    assert tail(tmp_path, "all is well\n").last_error() is None


def test_a_json_log_is_read_alike(tmp_path):
    lines = [PREFIX.sub("", line) for line in LOG.splitlines()]
    text = "\n".join(json.dumps({"levelname": "INFO", "message": line}) for line in lines)
    log = tail(tmp_path, text + "\n")
    assert list(log.new_stages()) == ["reading the model's configuration", "starting the engine"]
    assert log.last_error() == "ValueError: head_dim=16 is not supported"


def test_a_json_logs_traceback_is_where_the_reason_stands(tmp_path):
    record = {"message": "Engine core died", "exc_info": "Traceback\n  x\nValueError: too little memory"}
    assert tail(tmp_path, json.dumps(record)).last_error() == "ValueError: too little memory"


def test_errors_of_an_earlier_start_are_not_this_ones(tmp_path):
    log = tail(tmp_path, LOG)
    log.begin()
    with log.path.open("a") as file:
        file.write("all is well\n")
    assert log.last_error() is None


def test_a_log_that_is_passed_on_is_cut_when_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr("imod_serve.log.KEPT_BYTES", 20)
    echo, path = io.StringIO(), tmp_path / "log"
    with path.open("ab") as writer:
        log = LogTail(path, echo)
        for line in (b"the first line\n", b"the second line\n", b"ValueError: the third\n"):
            writer.write(line)
            writer.flush()
            log.follow()
    assert echo.getvalue() == "the first line\nthe second line\nValueError: the third\n"
    assert path.stat().st_size < 40
