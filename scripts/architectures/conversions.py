"""How transformers renames and converts the weights of a checkpoint, as data."""

from .library import MAJOR

LEGACY_BEFORE_5 = [
    ["WeightRenaming", rf"(?P<g0>{source}$)", [source], [target], {}]
    for source, target in (
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("LayerNorm.beta", "LayerNorm.bias"),
        ("weight_g", "parametrizations.weight.original0"),
        ("weight_v", "parametrizations.weight.original1"),
    )
]


def conversions():
    """{model type or class: rows} of transformers' tables; before transformers 5 each class has its own."""
    if MAJOR < 5:
        return {"legacy": LEGACY_BEFORE_5}
    from transformers import conversion_mapping as tables
    from transformers import core_model_loading as loading

    out = {}
    for key, transforms in tables._build_checkpoint_conversion_mapping().items():
        rows = []
        for t in transforms:
            more = {}
            if isinstance(t, loading.WeightConverter):
                more["ops"] = [
                    [type(op).__name__, {k: v for k, v in vars(op).items() if isinstance(v, (int, str, bool, list, tuple)) and v is not False}]
                    for op in t.operations
                ]
            if getattr(t, "offset", None) is not None:
                more["offset"] = t.offset
            pattern = t.compiled_sources.pattern
            if type(t).__name__ == "LayerPairCollapse":
                pattern = t.pattern.pattern
            rows.append([type(t).__name__, pattern, list(t.source_patterns), list(t.target_patterns), more])
        out[key] = rows
    return out


def mapping_before_5(cls):
    """The renames that `from_pretrained` of transformers 4 does for a class, of which the first that matches is done."""
    from transformers import modeling_utils

    listed = any(name in cls.__name__.lower() for name in getattr(modeling_utils, "VLMS", ()))
    rows = list((getattr(cls, "_checkpoint_conversion_mapping", None) or {}).items()) if listed else []
    return [["First", f"(?P<g0>{pattern})", [pattern], [to], {}] for pattern, to in rows]
