"""Installs bct_jax: `pip install -e '.[demo]'`."""

import re
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def _version() -> str:
  """Reads the version as text: an import would need the dependencies."""
  text = (ROOT / "bct_jax" / "__init__.py").read_text(encoding="utf-8")
  line = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
  if line is None:
    raise RuntimeError('bct_jax/__init__.py: no line __version__ = "..."')
  return line[1]


def _readme() -> str:
  """Returns the README, or "" where there is none, as in a partial copy."""
  path = ROOT / "README.md"
  return path.read_text(encoding="utf-8") if path.is_file() else ""


class BuildWithConfigs(build_py):
  """Adds `configs/` to a wheel; bct_jax/config/config_files.py finds it there.

  Not as a package beside bct_jax: other projects have a `configs` too.
  """

  def run(self):
    """Copies the configs below the package, unless the install is editable."""
    super().run()
    if self.editable_mode:  # which uses those of the checkout
      return
    for path in sorted((ROOT / "configs").rglob("*")):
      if path.suffix in (".py", ".json", ".jsonl", ".jinja", ".txt"):
        shipped = Path(self.build_lib, "bct_jax", "shipped")
        target = shipped / path.relative_to(ROOT)
        self.mkpath(str(target.parent))
        self.copy_file(str(path), str(target), preserve_mode=False)


# Floors only, so that the package installs beside others. jax has a ceiling:
# its minor releases remove what they have deprecated.
INSTALL = [
  "absl-py>=2.1",
  "array_record>=0.8; platform_system == 'Linux'",
  "filelock>=3.12",
  "flax>=0.12.8",
  "huggingface_hub>=1.0",
  "importlib_resources>=6.4",  # tensorflow-datasets imports it, undeclared.
  "jax>=0.10.2,<0.13",
  "jinja2>=3.1",
  "matplotlib>=3.9",
  "ml_collections>=1.0",
  "numpy>=2.0",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12",
  "pyarrow>=17",
  "safetensors>=0.5",
  "scipy>=1.13",
  "tensorflow-datasets>=4.9.8",
  "tokenizers>=0.22",
  "tqdm>=4.66",
  "transformers>=5.0",
]
# What the tests need on any Python; `test` adds the reference implementation
# (torch; accelerate, by which transformers reads GGUF; peft) and the gates.
TEST_CORE = [
  "build>=1.2",
  "gguf>=0.17",
  "hypothesis>=6.100",
  "py3langid>=0.4",
  "pytest>=8.2",
  "pytest-xdist>=3.6",
  "pyyaml>=6.0",
  "tensorboardX>=2.6.2",
  "websockets>=13.0",  # how the browser tests speak with Chromium
]
EXTRAS = {
  "cuda": ["jax[cuda12]"],
  "demo": ["gguf>=0.17"],
  "eval": ["inspect_ai>=0.3.285", "lm-eval>=0.4.13", "openai>=3.4"],
  "language": ["py3langid>=0.4"],  # the grader of that name
  "notebook": ["pandas>=2.2"],  # tables of load_results
  # --workdir=s3:// and gs://. Each is of one day's fsspec, so pip picks both.
  "store": ["gcsfs>=2025.3", "s3fs>=2025.3"],
  "tb": ["tensorboardX>=2.6.2"],
  "test": [
    *TEST_CORE,
    "accelerate>=1.1",
    "peft>=0.18",
    # With node, which a bare machine lacks and pyright runs on.
    "pyright[nodejs]>=1.1.400",
    "ruff>=0.14",
    "torch>=2.6",
  ],
  "test-core": TEST_CORE,
  # An S3 server on localhost.
  "test-store": ["flask>=3.0", "flask-cors>=5.0", "moto>=5.1", "s3fs>=2025.3"],
  # The TPU compiler alone, for --topology on a machine without a TPU.
  "topology": ["libtpu>=0.0.40,<0.1; platform_system == 'Linux'"],
  # The GPU compiler, for --topology on a machine without a GPU.
  "topology-gpu": ["jax[cuda12-local]"],
  "tpu": ["jax[tpu]"],
  "wandb": ["wandb>=0.19"],
}

setuptools.setup(
  name="bct_jax",
  version=_version(),
  description="Behavior-compatible training experiments in JAX",
  long_description=_readme(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["bct_jax", "bct_jax.*"]),
  package_data={
    "bct_jax": ["py.typed"],
    "bct_jax.report": ["*.html", "*.j2", "*.css", "*.js"],
  },
  cmdclass={"build_py": BuildWithConfigs},
  install_requires=INSTALL,
  extras_require=EXTRAS,
  entry_points={
    "console_scripts": ["bct-jax = bct_jax.__main__:main"],
    # How inspect_ai and lm-eval (releases after 0.4.13) find models by name.
    "inspect_ai": ["bct_jax = bct_jax.interop.inspect_entry"],
    "lm_eval.models": ["bct_jax = bct_jax.interop.harness:BctJaxLM"],
  },
)
