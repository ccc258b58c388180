"""LLaMA-Factory with shardwright: the same YAML, each rank reads its own bytes.

    torchrun --nproc_per_node 8 -m shardwright.llamafactory sft train.yaml      # v1
    torchrun --nproc_per_node 8 -m shardwright.llamafactory train train.yaml    # v0: model_name_or_path, stage, deepspeed

Of v0, ZeRO-3 and FSDP2 with `cpu_ram_efficient_loading` go through `shardwright.transformers`. Of v1, FSDP2 with `init_config: {name: init_on_meta}`
and DeepSpeed ZeRO-3 are loaded by shardwright, everything else as before. A section `shardwright:` in the YAML may set `missing`, `threads` and
`masters` for v1; the rest of it is for the `shardwright` command. Scripts of one's own call `install()`.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import transformers
from ._errors import ConfigError, ShardwrightError
from ._fill import fill, options_of
from .transformers import MOVED

logger = logging.getLogger("shardwright")

_installed = False

_PACKAGE = "llamafactory.v1"
_DISTRIBUTED = f"{_PACKAGE}.plugins.trainer_plugins.distributed"


def install(*, masters: bool = True, missing: str = "init", threads: int | None = None) -> None:
    """Makes LLaMA-Factory's FSDP2 and DeepSpeed engines load through shardwright. Call it before a trainer is made.

    An engine that this LLaMA-Factory does not have, or has in another form than is known, loads as it does without shardwright; the log says so.

    Args:
        masters: give ZeRO-3's fp32 masters the checkpoint's own precision where that is higher than the partitions'.
        missing: what becomes of parameters that the checkpoint lacks, as for `shardwright.fill`.
        threads: threads that read.
    """
    global _installed
    if _installed:
        return
    transformers._filled_is = logging.WARNING  # LLaMA-Factory shows no less
    transformers.enable()
    options = {"missing": missing, "threads": threads}
    options_of(options)  # wrong values are an error now, not a reason to load another way
    _install_fsdp2(options)
    if masters:
        _install_masters({"threads": threads})
    _installed = True


def _engine(name: str, usual: str) -> type[Any] | None:
    """A class of LLaMA-Factory, in the module where it usually is or in the one that defines it now."""
    for module in dict.fromkeys([usual, *_defining(name)]):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            logger.info("shardwright: %s cannot be imported: %s", module, error)
            continue
        if isinstance(found, type):
            return found
    return None


def _defining(name: str) -> Iterator[str]:
    """Modules of LLaMA-Factory that define a class of that name."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).rglob("*.py")):
            if f"class {name}" in path.read_text(encoding="utf-8", errors="replace"):
                parts = path.relative_to(folder).with_suffix("").parts
                yield ".".join([_PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])


_SEAMS = ("materialize_and_load", "_load_weights_from_hf_checkpoint")
"""Methods that load a checkpoint into a model on meta; the second is what the first calls once memory has been allocated."""


def _install_fsdp2(options: dict[str, Any]) -> None:
    engine = _engine("FSDP2Engine", f"{_DISTRIBUTED}.fsdp2")
    if engine is None:
        logger.warning("this LLaMA-Factory has no FSDP2Engine: FSDP2 loads without shardwright")
        return
    seam = next((s for s in _SEAMS if callable(getattr(engine, s, None))), None)
    if seam is None:
        logger.warning("LLaMA-Factory's FSDP2Engine has none of %s: FSDP2 loads without shardwright", ", ".join(_SEAMS))
        return
    original = getattr(engine, seam)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def load(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(self, model, *args, **kwargs).arguments
        except TypeError:
            return original(self, model, *args, **kwargs)  # which says what is wrong
        dcp = given.get("dcp_path", None if seam == _SEAMS[1] else getattr(self, "dcp_path", None))
        if dcp and os.path.exists(dcp):
            return original(self, model, *args, **kwargs)
        path = given.get("hf_model_path") or getattr(getattr(model, "config", None), "name_or_path", "")
        why = _fill_engine(self, model, path, options)
        if why is None:
            return model
        logger.warning("shardwright does not load this model, LLaMA-Factory does: %s", why)
        return original(self, model, *args, **kwargs)

    setattr(engine, seam, load)


def _fill_engine(engine: Any, model: Any, path: str | None, options: dict[str, Any]) -> str | None:
    """Fills the model of an FSDP2 engine, or returns why it cannot; the same on every rank, for headers and model decide."""
    if not path:
        return "its config names no checkpoint"
    try:
        folder = engine._resolve_hf_checkpoint_dir(path) if hasattr(engine, "_resolve_hf_checkpoint_dir") else path
        module = sys.modules[type(engine).__module__]
        device = module.get_current_accelerator() if hasattr(module, "get_current_accelerator") else None
        report = fill(model, folder, device=device, round_to=None, **options)
    except MOVED as error:
        return f"{type(error).__name__}: {error}"
    except ShardwrightError as error:
        # LLaMA-Factory takes any *.bin for a checkpoint.
        if not os.path.isdir(folder) or any(name.endswith(".safetensors") for name in os.listdir(folder)):
            raise
        return str(error)
    if getattr(engine, "rank", 0) == 0:
        logger.warning("shardwright filled the model: %r", report)
    return None


def _install_masters(options: dict[str, Any]) -> None:
    engine = _engine("DeepSpeedEngine", f"{_DISTRIBUTED}.deepspeed")
    original = getattr(engine, "prepare", None)
    if original is None:
        logger.warning("LLaMA-Factory's DeepSpeedEngine has no prepare: fp32 masters stay as DeepSpeed makes them")
        return

    @functools.wraps(original)
    def prepare(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = original(self, model, *args, **kwargs)
        path = getattr(getattr(model, "config", None), "name_or_path", "")
        if path and any(hasattr(p, "ds_tensor") for p in model.parameters()):
            from .deepspeed import fill_masters

            try:
                report = fill_masters(prepared[0] if isinstance(prepared, tuple) else prepared, path, **options)
            except (ShardwrightError, *MOVED) as error:
                # Not fatal: the masters are the partitions' values, as without us.
                logger.warning("shardwright leaves the fp32 masters as DeepSpeed made them: %s", error)
            else:
                logger.info("shardwright set %d fp32 masters", len(report.filled))
        return prepared

    engine.prepare = prepare  # type: ignore[union-attr]


def _own_section(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes the section `shardwright:` out of the YAML, which LLaMA-Factory would refuse."""
    at = next((i for i, a in enumerate(argv) if a.endswith((".yaml", ".yml"))), None)
    if at is None:
        return argv, {}
    from omegaconf import OmegaConf

    if not os.path.isfile(argv[at]):
        raise ConfigError(f"{argv[at]}: no such file")
    own = [a for a in argv[at + 1 :] if a.split("=")[0].split(".")[0] == "shardwright"]
    config = OmegaConf.load(argv[at])
    is_v0 = "model_name_or_path" in config
    if is_v0 != (argv[0] == "train") and (is_v0 or "model" in config):
        of, command = ("v0", "train") if is_v0 else ("v1", "sft")
        raise ConfigError(f"{argv[at]} is a config of LLaMA-Factory {of}; run it with '-m shardwright.llamafactory {command} {argv[at]}'")
    section: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.select(config, "shardwright") or {}, _overrides(own)))
    if "shardwright" not in config:
        return [a for a in argv if a not in own], section
    del config["shardwright"]
    handle, path = tempfile.mkstemp(suffix=".yaml")
    os.close(handle)
    OmegaConf.save(config, path)
    atexit.register(os.unlink, path)
    return [path if a == argv[at] else a for a in argv if a not in own], section


def _overrides(own: list[str]) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.select(OmegaConf.from_cli(own), "shardwright") or {}


def _run_v0() -> None:
    """What `llamafactory-cli train` does in each process: transformers' Trainer, whose models `from_pretrained` loads."""
    if importlib.util.find_spec("llamafactory.train") is None:
        raise ConfigError("this LLaMA-Factory has no v0, which the command 'train' runs")
    os.environ["USE_V1"] = "0"
    transformers._filled_is = logging.WARNING  # LLaMA-Factory shows no less
    transformers.enable(fsdp2=True)
    del sys.argv[1]
    from llamafactory.train.tuner import run_exp

    run_exp()


def main() -> None:
    """What `python -m shardwright.llamafactory` runs."""
    sys.argv[1:], section = _own_section(sys.argv[1:])
    if sys.argv[1:2] == ["train"]:
        # Gloo, as below.
        atexit.register(time.sleep, 0.5)
        return _run_v0()
    os.environ.setdefault("USE_V1", "1")
    options = {k: section[k] for k in ("masters", "missing", "threads") if section.get(k) is not None}
    for name, kind in {"masters": bool, "missing": str, "threads": int}.items():
        if name in options and not isinstance(options[name], kind):
            raise ConfigError(f"shardwright.{name}: expected a value of type {kind.__name__}, found {options[name]!r}")
    import torch

    if hasattr(torch, "accelerator") and not torch.accelerator.is_available():
        # LLaMA-Factory synchronises the accelerator; without one there is nothing to wait for, and a CUDA build raises.
        torch.accelerator.synchronize = lambda *_, **__: None  # type: ignore[assignment]
    install(**options)
    # Gloo's threads drop their last tensors, for which they need the GIL: torch 2.15 aborts a rank whose interpreter ends meanwhile.
    atexit.register(time.sleep, 0.5)
    from llamafactory.v1 import launcher

    # The one takes the command from the arguments and trains in this process; the other, of versions without it, does so under torchrun.
    (launcher.main if hasattr(launcher, "main") else launcher.launch)()


if __name__ == "__main__":
    main()
