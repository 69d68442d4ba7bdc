"""What the environment says to a sidecar and to a trainer: empty, misspelt, and meant for somebody else."""

import pytest
from selector_client import Selector
from selector_client.selecting import credentials
from selector_client.selecting.credentials import SETTINGS
from selector_proto.environment import is_of_a_service, unknown, variable_of

from selector_server.config import Config, load
from selector_server.errors import SetupError

PATHS = [name for name, field in Config.model_fields.items() if name.endswith("_file")]
PATHS += ["learner", "reference", "cache", "weights_share", "shared_memory_dir", "record"]
# What kubelet puts into every pod of a namespace with a Service named selector, and one named selector-redis.
OF_SERVICES = {
    "SELECTOR_SERVICE_HOST": "10.0.171.239",
    "SELECTOR_SERVICE_PORT": "50051",
    "SELECTOR_SERVICE_PORT_GRPC": "50051",
    "SELECTOR_PORT": "tcp://10.0.171.239:50051",
    "SELECTOR_PORT_50051_TCP": "tcp://10.0.171.239:50051",
    "SELECTOR_PORT_50051_TCP_PROTO": "tcp",
    "SELECTOR_PORT_50051_TCP_PORT": "50051",
    "SELECTOR_PORT_50051_TCP_ADDR": "10.0.171.239",
    "SELECTOR_REDIS_SERVICE_HOST": "10.0.0.11",
    "SELECTOR_REDIS_SERVICE_PORT_REDIS": "6379",
    "SELECTOR_REDIS_PORT": "tcp://10.0.0.11:6379",
    "SELECTOR_REDIS_PORT_6379_TCP_ADDR": "10.0.0.11",
}


def test_empty_variables_are_unset_and_do_not_hide_the_file(tmp_path):
    empty = {variable_of(name): "" for name in Config.model_fields}
    assert load({}, empty, None) == Config()
    (file := tmp_path / "settings.toml").write_text(f'shared_memory_dir = "{tmp_path}"')
    assert load({}, empty, file).shared_memory_dir == tmp_path


@pytest.mark.parametrize("name", PATHS)
def test_an_empty_path_is_a_mistake_and_not_the_working_directory(name, tmp_path):
    with pytest.raises(SetupError, match=f"{name} is ''; must be a path, and is empty"):
        load({name: ""}, {}, None)
    (file := tmp_path / "settings.toml").write_text(f'{name} = ""')
    with pytest.raises(SetupError, match=f"{name} is ''"):
        load({}, {}, file)


def test_all_paths_are_tried_above():
    assert set(PATHS) == {
        name for name, field in Config.model_fields.items() if "File" in str(field) or "Path" in str(field)
    }


def test_metrics_can_be_off_in_the_environment():
    assert load({}, {"SELECTOR_METRICS_LISTEN": "none"}, None).metrics_listen == ""
    assert load({"metrics_listen": ""}, {}, None).metrics_listen == ""


@pytest.mark.parametrize("variable", OF_SERVICES)
def test_variables_of_services_are_nobodys_mistake(variable):
    assert is_of_a_service(variable)
    assert load({}, OF_SERVICES, None) == Config()


@pytest.mark.parametrize("name", [*Config.model_fields, *SETTINGS])
def test_no_setting_can_be_set_by_a_service_by_accident(name):
    assert not is_of_a_service(variable_of(name))


def test_a_sidecar_names_variables_that_are_no_setting_and_what_may_be_meant(sidecar):
    server = sidecar(
        env=OF_SERVICES
        | {
            "SELECTOR_SHARED_MEMORY_DIRR": "/secret",
            "SELECTOR_MAX_BATCH_SIZE_OF_ALL": "secret",
            "SELECTOR_SERVER_NAME": "is of the client",
            "SELECTOR_MAX_WIDTH": "77",
            "SELECTORS": "1",
        }
    )
    lines = [line for line in server.text.splitlines() if "in the environment" in line]
    assert len(lines) == 2
    assert "SELECTOR_SHARED_MEMORY_DIRR is in the environment, but there is no such setting" in lines[0]
    assert lines[0].endswith("did you mean SELECTOR_SHARED_MEMORY_DIR?")
    assert "SELECTOR_MAX_BATCH_SIZE_OF_ALL" in lines[1]
    assert "secret" not in server.text
    assert server.info().limits.max_width == 77


def test_a_trainer_is_told_once_what_it_misspelt_and_nothing_of_the_sidecars(monkeypatch, caplog):
    credentials._misspelt.cache_clear()
    sidecars = map(variable_of, Config.model_fields.keys() - {"plaintext_tokens"})  # a trainer's has no s
    for variable in (*OF_SERVICES, *sidecars, "SELECTOR_SOMETHING_ELSE"):
        monkeypatch.setenv(variable, "")
    Selector("localhost:1").close()
    assert caplog.text == ""
    monkeypatch.setenv("SELECTOR_TOKEN_FIEL", "secret")
    monkeypatch.setenv("SELECTOR_OF", "1")
    for _ in range(2):
        Selector("localhost:1").close()
    assert sorted(caplog.messages) == [
        f"SELECTOR_{wrong} is in the environment, but a trainer reads nothing of that name; "
        f"did you mean SELECTOR_{right}?"
        for wrong, right in (("OF", "OFF"), ("TOKEN_FIEL", "TOKEN_FILE"))
    ]


def test_variables_of_others_are_not_looked_at():
    assert list(unknown({"PATH": "", "SELECTOR": "", "selector_cache": "", "SELECTOR_CACHE": ""}, ["cache"])) == []


@pytest.mark.parametrize(("path", "bytes_"), [("x" * 108, 108), ("/tmp/" + "ü" * 52, 109), ("", 0)])
def test_a_socket_path_that_cannot_be_is_refused_by_the_trainer_too(path, bytes_):
    assert len(path.encode()) == bytes_
    for address in (f"unix:{path}", f"unix://{path}"):
        with pytest.raises(ValueError, match="the path of a unix socket must have 1 to 107 bytes"):
            Selector(address)
    Selector(f"unix:/{'x' * 106}").close()
