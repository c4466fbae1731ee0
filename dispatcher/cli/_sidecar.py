"""What `serve` and `check` share: their flags, and how a configuration comes of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dispatcher.config import overrides_from
from dispatcher.sidecar.settings import SidecarConfig, add_settings_arguments
from dispatcher.sources import TOKEN_FILE

if TYPE_CHECKING:
    import argparse


def add_sidecar_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the configuration is, and a flag for each setting that is no secret."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="TOML file with settings, instead of DISPATCHER_CONFIG's")
    add("--token-file", metavar="FILE", help="file that holds the upstream's token, instead of QSTASH_TOKEN")
    add_settings_arguments(parser)


def load(arguments: argparse.Namespace) -> SidecarConfig:
    """The configuration as it is now: files are read anew each time. Raises `ConfigError`."""
    environment = dict(os.environ)
    if arguments.token_file is not None:
        environment[TOKEN_FILE] = arguments.token_file
    return SidecarConfig.load(env=environment, file=arguments.config, **overrides_from(arguments))
