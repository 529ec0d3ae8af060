"""Configs; files of a user's own folder `configs` can be imported beside."""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
