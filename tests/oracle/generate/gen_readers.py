"""gen_readers.py OUT: what PyYAML makes of plain scalars, OmegaConf of overrides, and DeepSpeed of every key of zero_optimization, bf16 and
fp16 with odd values. Needs pyyaml, omegaconf and deepspeed."""
import json, math, os, random, sys
os.environ["DS_ACCELERATOR"] = "cpu"
import yaml
from omegaconf import OmegaConf

def plain(v):
    if v is None: return {"type": "null"}
    if isinstance(v, bool): return {"type": "bool", "value": v}
    if isinstance(v, int): return {"type": "int", "value": str(v)}
    if isinstance(v, float): return {"type": "float", "value": repr(v)}
    if isinstance(v, str): return {"type": "text"}
    return {"type": "other"}

random.seed(7)
texts = """yes Yes YES yEs no No NO on On ON off Off OFF true True TRUE tRue false False n y Y ~ null Null NULL nULL 0 00 01 007 08 010 0o10 0x1F 0xg
0b101 0b 0b2 -0 +0 -17 +1_000 1__0 1_ _1 1e3 1E3 1e-4 1.0e5 1.0e+5 1.0e-5 5e8 5.0e8 .5 -.5 +.5 5. .5e+3 ._5 1._5 1.5_0 . .. - -- + +- .inf .Inf .INF -.inf +.inf .iNf
.nan .NaN .NAN -.nan inf nan 1:30 1:60 01:30 1:30:15 -1:30 1:3.5 1:30.5 1:5: 12:60.1 190:20:30 2001-12-14 1.2.3 1,000 1e 1e+ 1.e5 1.e+5 e5 0.1 00.1 0_1 0_8 9_9 0x_1 0b_1 0_ -0x1F
-0b1 +010 -010 1.0E+05 123456789012345678901234567890 = 0.0 -0.0 1.""".split()
alphabet = "0189_.:eE+-xob"
texts += ["".join(random.choice(alphabet) for _ in range(random.randint(1, 7))) for _ in range(1500)]
scalars = []
for t in dict.fromkeys(texts):
    try: v = yaml.safe_load(f"- {t}")
    except Exception: continue
    if isinstance(v, list) and len(v) == 1 and not isinstance(v[0], (list, dict)): scalars.append({"text": t, **plain(v[0])})

overrides = []
for t in ["true", "no", "On", "1e-4", "5e8", "1.0e5", "1", "007", "0x10", "null", "~", "", "a", "a b", "'1'", '"yes"', "[1, 2]", "[a,b]", "{a: 1}", "{a: {b: 1e3}}", "1_000", "1:30", ".5", "inf", ".inf",
          "a=b", "a: b", "2001-12-14", "-", "1.", "+1.5e3", "0o17", "None", "auto"]:
    try: v = OmegaConf.to_container(OmegaConf.from_cli([f"k={t}"]))["k"]
    except Exception as e: overrides.append({"text": t, "error": type(e).__name__}); continue
    overrides.append({"text": t, "json": v if not (isinstance(v, float) and not math.isfinite(v)) else repr(v)})

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
odd = [True, False, 0, 1, 2, -1, -2, 3, 1.0, 1.5, 0.5, 5e8, "500000000", "1.0", "1.", "5e8", "1.5", "true", "Yes", "off", "t", "", "none", "cpu", None, [], {}, "1_000", " 5 ", "+5", "-1", "0x10"]
deepspeed = []
def dump(m):
    d = {}
    for name, f in type(m).model_fields.items():
        if name in ("pipeline",): continue
        v = getattr(m, name)
        d[f.alias or name] = dump(v) if hasattr(v, "model_fields") else (v if isinstance(v, (bool, int, float, str, list, type(None))) else str(v))
    return d
def ask(section, cls, key, value, base):
    given = {**base, key: value}
    row = {"section": section, "given": given, "key": key}
    try:
        out = dump(cls(**given))
        if key in out: deepspeed.append({**row, "becomes": out[key]})
    except Exception as e: deepspeed.append({**row, "error": type(e).__name__})
for name, f in DeepSpeedZeroConfig.model_fields.items():
    extra = f.json_schema_extra or {}
    key = f.alias or name
    if extra.get("deprecated") or key in ("zenflow", "leaf_module", "offload_param", "offload_optimizer"): continue
    for v in odd: ask("zero_optimization", DeepSpeedZeroConfig, key, v, {} if key == "stage" else {"stage": 3})
for section, cls in (("bf16", DeepSpeedBF16Config), ("fp16", DeepSpeedFP16Config)):
    for key in cls.model_fields:
        if key == "enabled": continue
        for v in odd: ask(section, cls, key, v, {})
json.dump({"scalars": scalars, "overrides": overrides, "deepspeed": deepspeed}, open(sys.argv[1], "w"), indent=0)
print(len(scalars), len(overrides), len(deepspeed))
