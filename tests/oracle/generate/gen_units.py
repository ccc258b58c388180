"""gen_units.py OUT TYPE...: which module's fully_shard call claims each parameter, by LLaMA-Factory's rule, for models built on the meta
device from their default config. Of every list only elements 0 and 1 are kept (of jamba, whose elements differ in class, 0 to 4), of every unit the first three parameters."""
import json, re, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM


def claims(model, tied):
    layers = set()
    for m in model.modules():
        for a in ("layers", "blocks"):
            s = getattr(m, a, None)
            if isinstance(s, torch.nn.ModuleList) and len(s):
                layers.add(type(s[0]))
    if not layers:
        names = set(getattr(model, "_no_split_modules", None) or [])
        layers = {type(m) for m in model.modules() if type(m).__name__ in names}
    return {n for n, m in model.named_modules() if type(m) in layers or (isinstance(m, torch.nn.Embedding) and not tied)}


rows = []
for model_type in sys.argv[2:]:
    for auto in (AutoModelForCausalLM, AutoModel):
        try:
            with torch.device("meta"):
                model = auto.from_config(AutoConfig.for_model(model_type))
        except Exception as e:
            print("left out:", model_type, auto.__name__, str(e)[:60], file=sys.stderr)
            continue
        for tied in (True, False):
            wrapped, units = claims(model, tied), {}
            for name, p in model.named_parameters():
                if any(int(k) > (4 if model_type == "jamba" else 1) for k in re.findall(r"\b\d+\b", name)):
                    continue
                path = name.split(".")
                unit = next((u for k in range(len(path) - 1, 0, -1) if (u := ".".join(path[:k])) in wrapped), "")
                units.setdefault(unit, [])
                if len(units[unit]) < 3 and p.ndim <= 2 or p.ndim == 2 and unit.endswith("embeddings"):
                    units[unit].append([name, p.ndim])
            rows.append(dict(model_type=model_type, model=type(model).__name__, tied=tied, units=units,
                             default_tied=getattr(model.config, "tie_word_embeddings", True)))
open(sys.argv[1], "w").write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
