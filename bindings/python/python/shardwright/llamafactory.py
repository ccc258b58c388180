"""LLaMA-Factory v1 with shardwright: the same YAML, each rank reads its own bytes.

    torchrun --nproc_per_node 8 -m shardwright.llamafactory sft train.yaml

FSDP2 with `init_config: {name: init_on_meta}` and DeepSpeed ZeRO-3 are loaded by shardwright, everything else as before. A section `shardwright:`
in the YAML may set `missing`, `threads` and `masters`; the rest of it is for the `shardwright` command. Scripts of one's own call `install()`.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import tempfile
from typing import Any

from ._errors import ConfigError, ShardwrightError

logger = logging.getLogger("shardwright")

_installed = False


def install(*, masters: bool = True, missing: str = "init", threads: int | None = None) -> None:
    """Makes LLaMA-Factory's FSDP2 and DeepSpeed engines load through shardwright. Call it before a trainer is made.

    Args:
        masters: give ZeRO-3's fp32 masters the checkpoint's own precision where that is higher than the partitions'.
        missing: what becomes of parameters that the checkpoint lacks, as for `shardwright.fill`.
        threads: threads that read.
    """
    global _installed
    if _installed:
        return
    from . import transformers as hook

    hook.enable()
    _install_fsdp2({"missing": missing, "threads": threads})
    if masters:
        _install_masters({"threads": threads})
    _installed = True


def _install_fsdp2(options: dict[str, Any]) -> None:
    from llamafactory.v1.plugins.trainer_plugins.distributed import fsdp2

    original = fsdp2.FSDP2Engine.materialize_and_load

    def materialize_and_load(self: Any, model: Any, hf_model_path: str, dcp_path: str | None = None) -> Any:
        if dcp_path and os.path.exists(dcp_path):
            return original(self, model, hf_model_path, dcp_path)
        from ._fill import fill

        folder = self._resolve_hf_checkpoint_dir(hf_model_path)
        device = fsdp2.get_current_accelerator() if hasattr(fsdp2, "get_current_accelerator") else None
        report = fill(model, folder, device=device, round_to=None, **options)
        if self.rank == 0:
            logger.warning("shardwright filled the model: %r", report)
        return model

    fsdp2.FSDP2Engine.materialize_and_load = materialize_and_load


def _install_masters(options: dict[str, Any]) -> None:
    try:
        from llamafactory.v1.plugins.trainer_plugins.distributed import deepspeed as plugin
    except ImportError:
        return
    original = plugin.DeepSpeedEngine.prepare

    def prepare(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = original(self, model, *args, **kwargs)
        path = getattr(getattr(model, "config", None), "name_or_path", "")
        if path and any(hasattr(p, "ds_tensor") for p in model.parameters()):
            from .deepspeed import fill_masters

            try:
                report = fill_masters(prepared[0], path, **options)
            except ShardwrightError as error:
                # Not fatal: the masters are the partitions' values, as without us.
                logger.warning("shardwright leaves the fp32 masters as DeepSpeed made them: %s", error)
            else:
                logger.info("shardwright set %d fp32 masters", len(report.filled))
        return prepared

    plugin.DeepSpeedEngine.prepare = prepare


def _own_section(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes the section `shardwright:` out of the YAML, which LLaMA-Factory would refuse."""
    at = next((i for i, a in enumerate(argv) if a.endswith((".yaml", ".yml"))), None)
    if at is None:
        return argv, {}
    from omegaconf import OmegaConf

    own = [a for a in argv[at + 1 :] if a.split("=")[0].split(".")[0] == "shardwright"]
    config = OmegaConf.load(argv[at])
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


def main() -> None:
    """What `python -m shardwright.llamafactory` runs."""
    os.environ.setdefault("USE_V1", "1")
    sys.argv[1:], section = _own_section(sys.argv[1:])
    options = {k: section[k] for k in ("masters", "missing", "threads") if section.get(k) is not None}
    for name, kind in {"masters": bool, "missing": str, "threads": int}.items():
        if name in options and not isinstance(options[name], kind):
            raise ConfigError(f"shardwright.{name}: expected a value of type {kind.__name__}, found {options[name]!r}")
    import torch

    if hasattr(torch, "accelerator") and not torch.accelerator.is_available():
        # LLaMA-Factory synchronises the accelerator; without one there is nothing to wait for, and a CUDA build raises.
        torch.accelerator.synchronize = lambda *_, **__: None  # type: ignore[assignment]
    install(**options)
    from llamafactory.v1.launcher import main as launch

    launch()


if __name__ == "__main__":
    main()
