from imod_serve.log import LogTail

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
