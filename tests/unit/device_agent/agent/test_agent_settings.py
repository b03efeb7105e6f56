from __future__ import annotations

from pathlib import Path

import pytest

from device_agent import settings as settings_module
from device_agent.errors import SettingsError
from device_agent.settings import ENVIRONMENT, is_loopback, load_settings, normalised_url


def test_a_flag_wins_over_the_environment_and_that_over_the_default(tmp_path: Path) -> None:
    environment = {
        "KERF_AGENT_SERVER": "https://one.example/",
        "KERF_AGENT_NAME": "board",
        "KERF_AGENT_MAX_LEASES": "3",
        "KERF_AGENT_SIMULATED": "1",
        "KERF_AGENT_EMULATED": "1",
        "KERF_AGENT_STATE_DIR": str(tmp_path),
        "KERF_AGENT_CODE": "kerf_e_x",
        "KERF_AGENT_ARTIFACT_CACHE_BYTES": "1000",
        "KERF_AGENT_LOG_LEVEL": "debug",
    }
    loaded = load_settings(environment)
    assert loaded.server_url == "https://one.example"
    assert (loaded.device_name, loaded.max_leases, loaded.simulated) == ("board", 3, True)
    assert (loaded.state_dir, loaded.code, loaded.artifact_cache_bytes) == (tmp_path, "kerf_e_x", 1000)
    assert loaded.log_level == "debug"
    assert loaded.emulated
    assert not load_settings({}).emulated
    flagged = load_settings(environment, server="http://two.example:81", name="other", max_leases=5)
    assert (flagged.server_url, flagged.device_name, flagged.max_leases) == ("http://two.example:81", "other", 5)
    assert load_settings({}).max_leases == settings_module.DEFAULT_MAX_LEASES


def test_every_variable_read_is_documented() -> None:
    source = Path(settings_module.__file__).read_text()
    read = {
        word.strip('"')
        for word in source.replace("(", " ").replace(",", " ").replace(")", " ").split()
        if word.startswith('"KERF_')
    }
    assert {name.rstrip('":') for name in read} == set(ENVIRONMENT)


def test_the_state_directory_follows_xdg() -> None:
    assert load_settings({"XDG_DATA_HOME": "/data"}).state_dir == Path("/data/kerf-agent")
    assert load_settings({}).state_dir == Path("~/.local/share/kerf-agent").expanduser()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"KERF_AGENT_MAX_LEASES": "many"}, "KERF_AGENT_MAX_LEASES='many'"),
        ({"KERF_AGENT_MAX_LEASES": "0"}, "0 is not in 1..64"),
        ({"KERF_AGENT_SIMULATED": "maybe"}, "maybe"),
        ({"KERF_AGENT_NAME": "a\nb"}, "printable"),
        ({"KERF_AGENT_ARTIFACT_CACHE_BYTES": "-1"}, "-1"),
        ({"KERF_AGENT_LOG_LEVEL": "loud"}, "loud"),
        ({"KERF_AGENT_SERVER": "server:8080"}, "server:8080"),
    ],
)
def test_a_wrong_value_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named.replace("(", r"\(")):
        load_settings(environment)


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "http://", "http://x:port", "http://u:p@x", "http://x?q=1", "x.example"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        normalised_url(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://[::1]:80", True),
        ("http://10.0.0.1", False),
        ("https://kerf.example", False),
    ],
)
def test_loopback_is_recognised(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected
