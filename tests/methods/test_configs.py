"""Every shipped method config says the same as the method's own defaults, and every config composes."""

import importlib.util
from dataclasses import asdict, fields

import hydra
import pytest
from omegaconf import OmegaConf

from cbm import config
from cbm.editing import EDITORS, create_editor
from cbm.methods import METHODS, create_method

PRESETS = {"zcbm": "splice"}
"""Other settings of a method, under the name of their paper."""


@pytest.mark.parametrize("name", config.choices("method"))
def test_yaml_and_dataclass_agree(name: str):
    settings = OmegaConf.to_container(OmegaConf.load(config.CONFIGS / "method" / f"{name}.yaml"))
    assert isinstance(settings, dict)
    method = settings.pop("name")
    assert method == PRESETS.get(name, name)
    defaults = METHODS[method].Config()
    if name in PRESETS:
        assert settings.keys() == {field.name for field in fields(defaults)}
    else:
        assert settings == asdict(defaults)
    create_method({"name": method, **settings})


def test_every_method_has_a_config():
    assert set(METHODS) | set(PRESETS) == set(config.choices("method"))


@pytest.mark.parametrize("name", config.choices("editor"))
def test_editors_agree_with_their_files(name: str):
    settings = OmegaConf.to_container(OmegaConf.load(config.CONFIGS / "editor" / f"{name}.yaml"))
    assert isinstance(settings, dict)
    assert settings == {"name": name, **asdict(EDITORS[name]())}
    assert create_editor(settings) == EDITORS[name]()
    assert set(EDITORS) == set(config.choices("editor"))


@pytest.mark.parametrize("group", config.groups())
def test_every_choice_composes(group: str):
    config.register()
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        for name in config.choices(group):
            plugin = {"joblib": "joblib", "ray": "ray"}.get(name, "submitit") if group == "launcher" else None
            if plugin and importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
                continue  # an extra
            composed = hydra.compose("eval" if group == "editor" else "train", overrides=[f"{group}={name}"])
            assert composed.cache == "cache"
